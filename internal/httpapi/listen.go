package httpapi

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Listener serves a handler over TLS until its context ends.
type Listener struct {
	Handler http.Handler
	TLS     *tls.Config
	Log     *slog.Logger
}

// drain is how long calls under way may take to end after the context is done; watches and
// consoles are cut.
const drain = time.Second

// Serve owns ln. It returns when every connection is closed.
func (l *Listener) Serve(ctx context.Context, ln net.Listener) error {
	// Watches end with the server, not only with their callers.
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	s := &http.Server{
		Handler: l.Handler, TLSConfig: l.TLS, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog: slog.NewLogLogger(l.Log.Handler(), slog.LevelDebug), // failed handshakes of strangers
	}
	ended := make(chan error, 1)
	go func() { ended <- s.ServeTLS(ln, "", "") }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	cut()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if s.Shutdown(grace) != nil {
		_ = s.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
