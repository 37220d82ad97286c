package veem

import (
	"context"
	"io"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Connect: vmi.Service.
func (m *Manager) Connect(ctx context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error) {
	host, err := m.reach(ctx, id, "connection to the guest")
	if err != nil {
		return nil, err
	}
	c, err := m.client(host)
	if err != nil {
		return nil, err
	}
	return c.Connect(ctx, id, port)
}

// Capture: vmi.Service.
func (m *Manager) Capture(ctx context.Context, id vee.ID, nic int) (io.ReadWriteCloser, error) {
	host, err := m.reach(ctx, id, "capture")
	if err != nil {
		return nil, err
	}
	c, err := m.client(host)
	if err != nil {
		return nil, err
	}
	return c.Capture(ctx, id, nic)
}
