// Package guest is what a host agent and the agent inside a guest say to each other over
// a virtio-serial port: JSON objects, one a line, at most MaxLine bytes each. The guest is
// never trusted: the host bounds what it reads and believes nothing but measurements and
// readiness.
package guest

// PortName of the virtio-serial port; in the guest /dev/virtio-ports/<PortName>.
const PortName = "cloud.reservoir.guest.0"

// MaxLine bounds one message, in bytes. A longer one ends the connection.
const MaxLine = 64 << 10

// Hello is the guest's first message, and again after every "hello?" of the host.
type Hello struct {
	Type         string   `json:"type"` // "hello"
	Version      string   `json:"version"`
	Hostname     string   `json:"hostname,omitempty"`
	Capabilities []string `json:"capabilities,omitempty"` // names of the commands it obeys
}

// Status comes when it changes and at least every five seconds.
type Status struct {
	Type    string `json:"type"`  // "status"
	Ready   bool   `json:"ready"` // its service answers: what waitingForGuest waits for
	Message string `json:"message,omitempty"`
	Idle    bool   `json:"idle,omitempty"`
	// Failure of what the guest was to do at its first boot, in words; it stands until the
	// next boot. A guest that has one is not ready.
	Failure string             `json:"failure,omitempty"`
	KPIs    map[string]float64 `json:"kpis,omitempty"`
	UptimeS float64            `json:"uptimeSeconds,omitempty"`
}

// Command is what the host asks: "hello?", "burn-cpu" (Seconds, Amount = cores),
// "burn-memory" (Seconds, Amount = bytes), "kpi" (Name, Amount), "ready" (Amount 0 or 1),
// "shutdown".
type Command struct {
	Type    string  `json:"type"`
	ID      string  `json:"id,omitempty"` // comes back in the Reply
	Name    string  `json:"name,omitempty"`
	Amount  float64 `json:"amount,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
}

// Reply to a Command that had an ID.
type Reply struct {
	Type  string `json:"type"` // "reply"
	ID    string `json:"id"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}
