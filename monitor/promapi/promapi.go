// Package promapi is the query part of Prometheus's HTTP API, version 1: a server of it
// over a monitor.Library, so that Grafana and other stock clients can ask a site, and a
// client, which asks a site or any other server that speaks it (Prometheus, Mimir,
// VictoriaMetrics). Instant and range queries, and which labels and series there are, by GET.
package promapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
)

// Prefix below which a site serves it; what a stock client is told as the URL of the server
// is the site's address and this.
const Prefix = "/prometheus"

const (
	queryPath = "/api/v1/query"
	rangePath = "/api/v1/query_range"

	labelsPath = "/api/v1/labels"
	valuesPath = "/api/v1/label/{name}/values"
	seriesPath = "/api/v1/series"
)

// Errors as the API names them.
const (
	badData     = "bad_data"
	execution   = "execution"
	timeout     = "timeout"
	unavailable = "unavailable"
	internal    = "internal"
)

// answer of the API.
type answer struct {
	Status    string          `json:"status"`         // "success" or "error"
	Data      json.RawMessage `json:"data,omitempty"` // a data, or a list of texts or of labels
	ErrorType string          `json:"errorType,omitempty"`
	Error     string          `json:"error,omitempty"`
	Warnings  []string        `json:"warnings,omitempty"`
}

// data of a query.
type data struct {
	ResultType string          `json:"resultType"` // "vector", "matrix", "scalar" or "string"
	Result     json.RawMessage `json:"result"`
}

// Result is a series as the API writes it.
type Result struct {
	Metric map[string]string `json:"metric"`
	Value  *Point            `json:"value,omitempty"`  // of a vector
	Values []Point           `json:"values,omitempty"` // of a matrix
}

// Point is [seconds since 1970, "value"]: JSON has no numbers for NaN and infinity.
type Point monitor.Point

// MarshalJSON implements json.Marshaler.
func (p Point) MarshalJSON() ([]byte, error) {
	value := strconv.FormatFloat(p.Value, 'g', -1, 64)
	switch {
	case math.IsInf(p.Value, 1):
		value = "+Inf"
	case math.IsInf(p.Value, -1):
		value = "-Inf"
	}
	return fmt.Appendf(nil, "[%.3f,%q]", float64(p.At.UnixMilli())/1000, value), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *Point) UnmarshalJSON(b []byte) error {
	var at float64
	var value string
	if err := json.Unmarshal(b, &[]any{&at, &value}); err != nil {
		return err
	}
	if math.Abs(at) > 1e11 {
		return fmt.Errorf("a point at %v seconds", at)
	}
	v, err := strconv.ParseFloat(value, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return err
	}
	p.At, p.Value = time.UnixMilli(int64(math.Round(at*1000))), v
	return nil
}

// Handler serves library below Prefix. Scope says what the caller of a request may read.
func Handler(library monitor.Library, scope func(context.Context) (monitor.Scope, error), now func() time.Time) http.Handler {
	mux := http.NewServeMux()
	serve := func(path string, ask func(ctx context.Context, q monitor.Querier, p url.Values) ([]monitor.Series, error)) {
		mux.HandleFunc("GET "+Prefix+path, func(w http.ResponseWriter, r *http.Request) {
			s, err := scope(r.Context())
			var found []monitor.Series
			if err == nil {
				found, err = ask(r.Context(), library.Querier(s), r.URL.Query())
			}
			var a answer
			if err == nil {
				a, err = encode(found, path == rangePath)
			}
			write(w, a, err)
		})
	}
	list := func(path string, ask func(r *http.Request, s monitor.Selection) (list any, more bool, err error)) {
		mux.HandleFunc("GET "+Prefix+path, func(w http.ResponseWriter, r *http.Request) {
			var a answer
			s, err := selection(r.URL.Query(), now())
			if err == nil {
				s.Scope, err = scope(r.Context())
			}
			if err == nil {
				a, err = listed(func() (any, bool, error) { return ask(r, s) })
			}
			write(w, a, err)
		})
	}
	list(labelsPath, func(r *http.Request, s monitor.Selection) (any, bool, error) {
		return library.LabelNames(r.Context(), s)
	})
	list(valuesPath, func(r *http.Request, s monitor.Selection) (any, bool, error) {
		name := r.PathValue("name")
		if !labelName(name) {
			return nil, false, fault.New(fault.Malformed, "label %.40q: want letters, digits and _, no digit first", name)
		}
		return library.LabelValues(r.Context(), name, s)
	})
	list(seriesPath, func(r *http.Request, s monitor.Selection) (any, bool, error) {
		if len(s.Match) == 0 {
			return nil, false, fault.New(fault.Malformed, "no match[] says which series")
		}
		return library.Series(r.Context(), s)
	})
	serve(queryPath, func(ctx context.Context, q monitor.Querier, p url.Values) ([]monitor.Series, error) {
		at, err := instant(p.Get("time"), now())
		if err != nil {
			return nil, err
		}
		return q.Query(ctx, p.Get("query"), at)
	})
	serve(rangePath, func(ctx context.Context, q monitor.Querier, p url.Values) ([]monitor.Series, error) {
		from, err := instant(p.Get("start"), now())
		if err != nil {
			return nil, err
		}
		to, err := instant(p.Get("end"), now())
		if err != nil {
			return nil, err
		}
		step, err := duration(p.Get("step"))
		if err != nil {
			return nil, err
		}
		return q.QueryRange(ctx, p.Get("query"), from, to, step)
	})
	return mux
}

// instant is seconds since 1970 or RFC 3339; empty: now.
func instant(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return now, nil
	}
	if s, err := strconv.ParseFloat(text, 64); err == nil && math.Abs(s) < 1e11 {
		return time.UnixMilli(int64(math.Round(s * 1000))), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	return time.Time{}, fault.New(fault.Malformed, "time %q: want seconds since 1970 or RFC 3339", text)
}

// duration is seconds or as Go and, for these units, Prometheus write it.
func duration(text string) (time.Duration, error) {
	if s, err := strconv.ParseFloat(text, 64); err == nil && s > 0 && s < 1e9 {
		return time.Duration(s * float64(time.Second)), nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return d, nil
	}
	return 0, fault.New(fault.Malformed, "step %q: want seconds, or a duration such as 30s", text)
}

// labelName reports whether there may be a label of that name: what a path can say besides is
// somebody's try.
func labelName(name string) bool { return name == monitor.FieldOf(name) && name != "" }

// selection that a request makes; its scope is not the request's to say.
func selection(p url.Values, now time.Time) (s monitor.Selection, err error) {
	s.Match = p["match[]"]
	if text := p.Get("start"); text != "" {
		if s.From, err = instant(text, now); err != nil {
			return s, err
		}
	}
	if s.To, err = instant(p.Get("end"), now); err != nil {
		return s, err
	}
	if text := p.Get("limit"); text != "" {
		if s.Limit, err = strconv.Atoi(text); err != nil || s.Limit < 0 {
			return s, fault.New(fault.Malformed, "limit %q: want a number, or 0 for as many as there may be", text)
		}
	}
	return s, nil
}

// listed answer.
func listed(ask func() (list any, more bool, err error)) (answer, error) {
	list, more, err := ask()
	if err != nil {
		return answer{}, err
	}
	a := answer{Status: "success"}
	if more {
		a.Warnings = []string{cutOff}
	}
	a.Data, err = json.Marshal(list)
	return a, err
}

// cutOff is what Prometheus itself warns of, by which its clients know it.
const cutOff = "results truncated due to limit"

func write(w http.ResponseWriter, a answer, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		var status int
		a, status = failure(err)
		w.WriteHeader(status)
	}
	_ = json.NewEncoder(w).Encode(a) // a client that is gone is no fault of ours
}

// Results of a query, as a vector or, of a range, a matrix has them.
func Results(found []monitor.Series, matrix bool) []Result {
	results := make([]Result, len(found))
	for i, s := range found {
		results[i].Metric = s.Labels
		if s.Labels == nil {
			results[i].Metric = map[string]string{}
		}
		if !matrix {
			p := Point(s.Points[0])
			results[i].Value = &p
			continue
		}
		for _, p := range s.Points {
			results[i].Values = append(results[i].Values, Point(p))
		}
	}
	return results
}

func encode(found []monitor.Series, matrix bool) (answer, error) {
	results := Results(found, matrix)
	kind, body := "vector", any(results)
	switch {
	case matrix:
		kind = "matrix"
	case len(found) == 1 && found[0].Labels == nil:
		kind, body = "scalar", results[0].Value
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return answer{}, err
	}
	raw, err = json.Marshal(data{kind, raw})
	return answer{Status: "success", Data: raw}, err
}

func failure(err error) (answer, int) {
	f := fault.From(err)
	kind, status := internal, http.StatusInternalServerError
	switch f.Code {
	case fault.Malformed:
		kind, status = badData, http.StatusBadRequest
	case fault.TooLarge:
		kind, status = execution, http.StatusUnprocessableEntity
	case fault.Timeout:
		kind, status = timeout, http.StatusServiceUnavailable
	case fault.Unavailable:
		kind, status = unavailable, http.StatusServiceUnavailable
	case fault.Denied, fault.Unauthenticated:
		kind, status = badData, f.Status()
	}
	return answer{Status: "error", ErrorType: kind, Error: f.Message}, status
}

// Client is a monitor.Querier and a monitor.Catalogue that asks a server. The server decides what
// may be read: selections have no scope.
type Client struct {
	Base  string // of the server: what the API's own paths are added to
	HTTP  *http.Client
	Token string // bearer; empty: none
}

var (
	_ monitor.Querier   = Client{}
	_ monitor.Catalogue = Client{}
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64 << 20

// Query implements monitor.Querier.
func (c Client) Query(ctx context.Context, expr string, at time.Time) ([]monitor.Series, error) {
	return c.query(ctx, queryPath, url.Values{"query": {expr}, "time": {seconds(at)}})
}

// QueryRange implements monitor.Querier.
func (c Client) QueryRange(ctx context.Context, expr string, from, to time.Time, step time.Duration) ([]monitor.Series, error) {
	return c.query(ctx, rangePath, url.Values{"query": {expr}, "start": {seconds(from)}, "end": {seconds(to)}, "step": {strconv.FormatFloat(step.Seconds(), 'f', -1, 64)}})
}

func seconds(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64)
}

// LabelNames implements monitor.Catalogue.
func (c Client) LabelNames(ctx context.Context, s monitor.Selection) (names []string, more bool, err error) {
	more, err = c.list(ctx, labelsPath, s, &names)
	return names, more, err
}

// LabelValues implements monitor.Catalogue.
func (c Client) LabelValues(ctx context.Context, label string, s monitor.Selection) (values []string, more bool, err error) {
	more, err = c.list(ctx, strings.Replace(valuesPath, "{name}", url.PathEscape(label), 1), s, &values)
	return values, more, err
}

// Series implements monitor.Catalogue.
func (c Client) Series(ctx context.Context, s monitor.Selection) (labels []map[string]string, more bool, err error) {
	more, err = c.list(ctx, seriesPath, s, &labels)
	return labels, more, err
}

func (c Client) list(ctx context.Context, path string, s monitor.Selection, to any) (more bool, err error) {
	q := url.Values{"match[]": s.Match, "end": {seconds(s.To)}}
	if !s.From.IsZero() {
		q.Set("start", seconds(s.From))
	}
	if s.Limit > 0 {
		q.Set("limit", strconv.Itoa(s.Limit))
	}
	a, err := c.ask(ctx, path, q)
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(a.Data, to); err != nil {
		return false, fault.New(fault.Unavailable, "the answer of %s makes no sense: %w", c.Base, err)
	}
	return slices.Contains(a.Warnings, cutOff), nil
}

func (c Client) query(ctx context.Context, path string, q url.Values) ([]monitor.Series, error) {
	a, err := c.ask(ctx, path, q)
	if err != nil {
		return nil, err
	}
	var d data
	err = json.Unmarshal(a.Data, &d)
	var found []monitor.Series
	if err == nil {
		found, err = d.series()
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "the answer of %s makes no sense: %w", c.Base, err)
	}
	return found, nil
}

// ask the server, whose answer is then a success with data.
func (c Client) ask(ctx context.Context, path string, q url.Values) (a answer, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.Base, "/")+path+"?"+q.Encode(), nil)
	if err != nil {
		return a, fault.New(fault.Malformed, "ask %s for measurements: %w", c.Base, err)
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return a, fault.New(fault.Timeout, "ask %s for measurements: %w", c.Base, context.Cause(ctx))
		}
		return a, fault.New(fault.Unavailable, "ask %s for measurements: %w", c.Base, err).Try("is it up? curl %s/-/healthy", c.Base)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return a, fault.New(fault.Unavailable, "read the measurements of %s: %w", c.Base, err)
	case len(b) > maxAnswer:
		return a, fault.New(fault.TooLarge, "%s answers with more than %d bytes", c.Base, maxAnswer).Try("ask for fewer series or a shorter range")
	}
	if err := json.Unmarshal(b, &a); err != nil || a.Status == "" {
		return a, foreign(resp, b)
	}
	if a.Status != "success" || a.Data == nil {
		return a, refusal(a)
	}
	return a, nil
}

// foreign answer: not the API's own, such as a site's that does not know the caller.
func foreign(resp *http.Response, body []byte) error {
	code := fault.Unavailable
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		code = fault.Unauthenticated
	case http.StatusForbidden:
		code = fault.Denied
	}
	var problem struct {
		Detail string `json:"detail"`
	}
	if json.Unmarshal(body, &problem) == nil && problem.Detail != "" {
		return fault.New(code, "%s", problem.Detail)
	}
	return fault.New(code, "ask for measurements: the server answers %s", resp.Status)
}

func refusal(a answer) error {
	code := fault.Internal
	switch a.ErrorType {
	case badData:
		code = fault.Malformed
	case execution:
		code = fault.TooLarge
	case timeout:
		code = fault.Timeout
	case unavailable:
		code = fault.Unavailable
	}
	return fault.New(code, "%s", a.Error)
}

func (d *data) series() ([]monitor.Series, error) {
	switch d.ResultType {
	case "scalar":
		var p Point
		err := json.Unmarshal(d.Result, &p)
		return []monitor.Series{{Points: []monitor.Point{monitor.Point(p)}}}, err
	case "vector", "matrix":
	default:
		return nil, fmt.Errorf("its result is a %q", d.ResultType)
	}
	var results []Result
	if err := json.Unmarshal(d.Result, &results); err != nil {
		return nil, err
	}
	out := make([]monitor.Series, len(results))
	for i, r := range results {
		out[i].Labels = r.Metric
		if r.Value != nil {
			out[i].Points = []monitor.Point{monitor.Point(*r.Value)}
		}
		for _, p := range r.Values {
			out[i].Points = append(out[i].Points, monitor.Point(p))
		}
		if len(out[i].Points) == 0 {
			return nil, fmt.Errorf("series %v has no points", r.Metric)
		}
	}
	return out, nil
}
