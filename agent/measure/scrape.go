package measure

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/intake"
)

// mostScraped bytes of one answer, unpacked.
const mostScraped = 1 << 20

// scrape asks a VEE's declared endpoint for its measurements. Whatever the answer says, it is
// this VEE that was asked: each connection leads to its own address, from inside its network,
// and redirects are not followed.
func (m *Measurer) scrape(ctx context.Context, v VEE, g *measured) ([]monitor.Value, error) {
	at := v.Descriptor.Metrics
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true, // the VEE may be elsewhere the next time
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return m.cfg.Dial(ctx, v.ID, uint16(at.Port))
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d%s", v.Descriptor.Name, at.Port, at.Path), nil)
	if err != nil {
		return nil, fmt.Errorf("scrape VEE %s: %w", v.ID, err)
	}
	request.Header.Set("Accept", "text/plain;version=0.0.4")
	reply, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("scrape VEE %s: %w", v.ID, err)
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("scrape VEE %s: %s answers %s", v.ID, at.Path, reply.Status)
	}
	body, err := io.ReadAll(io.LimitReader(reply.Body, mostScraped+1))
	if err != nil {
		return nil, fmt.Errorf("scrape VEE %s: %w", v.ID, err)
	}
	if len(body) > mostScraped {
		m.cfg.Source.Refuse(monitor.TooMany, 1)
		return nil, fmt.Errorf("scrape VEE %s: its answer is longer than %d bytes", v.ID, mostScraped)
	}
	values, dropped, err := intake.Text(body, intake.Usual)
	if err != nil {
		return nil, fmt.Errorf("scrape VEE %s: %w", v.ID, err)
	}
	for why, n := range dropped {
		m.cfg.Source.Refuse(why, n)
	}
	values, _ = m.admit(g, values)
	return values, nil
}
