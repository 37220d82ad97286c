// Package export is what a process says of itself at /metrics, in Prometheus's text format:
// its Go runtime and the operating system's view of it, and what its parts add. These are
// for who runs the processes; what services and machines do are measurements (package
// monitor).
package export

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// Path at which a process serves it.
const Path = "/metrics"

// Registry of one process.
type Registry struct{ r *prometheus.Registry }

// New registry of a process of that kind ("site", "host") and version.
func New(process, version string) *Registry {
	r := &Registry{prometheus.NewRegistry()}
	r.r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.Gauge("reservoir_build_info", "What this process is.", map[string]string{"process": process, "version": version}, func() float64 { return 1 })
	return r
}

// Gauge adds a value that f tells when it is asked for. Names and labels that are there
// already are a mistake of the program: it panics.
func (r *Registry) Gauge(name, help string, labels map[string]string, f func() float64) {
	r.r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, f))
}

// Counter adds a value that only grows.
func (r *Registry) Counter(name, help string, labels map[string]string, f func() float64) {
	r.r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, f))
}

// Counters adds one of that name for each value of a label that f knows when it is asked.
func (r *Registry) Counters(name, help, label string, f func() map[string]float64) {
	r.r.MustRegister(counters{prometheus.NewDesc(name, help, []string{label}, nil), f})
}

type counters struct {
	desc *prometheus.Desc
	f    func() map[string]float64
}

func (c counters) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c counters) Collect(ch chan<- prometheus.Metric) {
	for of, n := range c.f() {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, n, of)
	}
}

// Registerer for parts that are Prometheus's own; nil for no registry.
func (r *Registry) Registerer() prometheus.Registerer {
	if r == nil {
		return nil
	}
	return r.r
}

// Handler serves the registry to callers of these roles.
func (r *Registry) Handler(roles ...identity.Role) http.Handler {
	serve := promhttp.HandlerFor(r.r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if c := identity.From(req.Context()); !c.Is(roles...) {
			f := fault.New(fault.Denied, "role %q may not read the metrics of a process", c.Role)
			http.Error(w, f.Error(), f.Status())
			return
		}
		serve.ServeHTTP(w, req)
	})
}
