package hypervisor

// Names in Capabilities.Operations of what belongs to Driver and yet not every driver can.
const (
	OpSuspend      = "suspend"       // Suspend and Wake
	OpConsole      = "console"       // Console, of guests that do run a program
	OpGuestChannel = "guest-channel" // GuestChannel
)
