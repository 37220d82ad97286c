package store

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"go.uber.org/zap/zapcore"
)

// logCore passes etcd's log entries on, none louder than it deserves: every start warns of
// things that are as they should be here, and an error that concerns a caller reaches it.
type logCore struct {
	log *slog.Logger
}

func level(l zapcore.Level) slog.Level {
	switch {
	case l > zapcore.ErrorLevel: // the process is about to end
		return slog.LevelError
	case l == zapcore.ErrorLevel:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

func (c logCore) Enabled(l zapcore.Level) bool {
	return c.log.Enabled(context.Background(), level(l))
}

func (c logCore) With(fields []zapcore.Field) zapcore.Core {
	return logCore{log: slog.New(c.log.Handler().WithAttrs(attrs(fields)))}
}

func (c logCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c logCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.LogAttrs(context.Background(), level(e.Level), "etcd: "+e.Message, attrs(fields)...)
	return nil
}

func (c logCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	var as []slog.Attr
	for _, k := range slices.Sorted(maps.Keys(m.Fields)) {
		as = append(as, slog.Any(k, m.Fields[k]))
	}
	return as
}

// giveUp is what follows a Fatal or Panic entry: a panic that names the cause. Open
// recovers it and says what is wrong; elsewhere the process ends with a trace.
type giveUp struct{}

func (giveUp) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	if cause, ok := m.Fields["error"]; ok {
		panic(fmt.Sprintf("%s: %v", e.Message, cause))
	}
	panic(e.Message)
}
