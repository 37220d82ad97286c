package service

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const (
	// pushEvery so often measurements are pushed.
	pushEvery = 5 * time.Second
	// pushPatience with who takes them.
	pushPatience = 3 * time.Second
)

// Push the measurements, under names that start with "pushed_", to the proxy at a URL until
// ctx ends. log is told when that stops working, and when it works again.
func (s *Service) Push(ctx context.Context, channel string, a Agent, log func(format string, args ...any)) {
	tick := time.NewTicker(pushEvery)
	defer tick.Stop()
	for last := ""; ; {
		told := "measurements are pushed to " + channel
		if err := s.push(ctx, channel, a); err != nil {
			told = "measurements are not pushed: " + err.Error()
		}
		if told != last && ctx.Err() == nil {
			log("%s", told)
			last = told
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Service) push(ctx context.Context, channel string, a Agent) error {
	ctx, cancel := context.WithTimeout(ctx, pushPatience)
	defer cancel()
	var text strings.Builder
	for line := range strings.Lines(Metrics(a.Status())) {
		text.WriteString("pushed_" + line)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(channel, "/")+"/metrics", strings.NewReader(text.String()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "text/plain; version=0.0.4")
	reply, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("%s answers %s", channel, reply.Status)
	}
	return nil
}
