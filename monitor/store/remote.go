package store

import (
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	promconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/storage/remote"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// flushRemote is how long samples that were not sent yet may take when the store is closed.
const flushRemote = 5 * time.Second

// writeTo sends what the database in dir writes into its log to a remote-write receiver:
// Prometheus's own sender, which follows the log, keeps its place while the receiver is
// away (as long as the log is kept, two hours and more) and takes no memory for that.
func writeTo(to, dir string, reg prometheus.Registerer, log *slog.Logger) (*remote.WriteStorage, error) {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fault.New(fault.Malformed, "remote write to %q: want an http or https URL", to).
			Try("reservoir site --metrics-write-url https://HOST:9090/api/v1/write")
	}
	c := config.DefaultRemoteWriteConfig
	c.URL = &promconfig.URL{URL: u}
	c.Name = "remote"
	c.MetadataConfig.Send = false
	c.QueueConfig.BatchSendDeadline = model.Duration(time.Second)
	c.QueueConfig.MaxShards = 4
	c.QueueConfig.Capacity = 5000
	w := remote.NewWriteStorage(log, reg, dir, flushRemote, nil, false)
	full := config.DefaultConfig
	full.RemoteWriteConfigs = []*config.RemoteWriteConfig{&c}
	if err := w.ApplyConfig(&full); err != nil {
		return nil, fmt.Errorf("remote write to %s: %w", u.Redacted(), err)
	}
	return w, nil
}
