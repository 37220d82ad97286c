package boot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// powerKey is an event's type and code (linux/input-event-codes.h: EV_KEY, KEY_POWER)
// when the key goes down.
var powerKey = [8]byte{1, 0, 116, 0, 1, 0, 0, 0}

// PowerButton calls pressed at each press of the machine's ACPI power button until ctx
// ends. The modules button and evdev have to be loaded.
func PowerButton(ctx context.Context, pressed func()) error {
	names, err := filepath.Glob("/sys/class/input/event*/device/name")
	if err != nil {
		return err
	}
	var buttons []*os.File
	for _, path := range names {
		name, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(name)) != "Power Button" {
			continue
		}
		event := strings.Split(path, "/")[4]
		f, err := os.Open("/dev/input/" + event)
		if err != nil {
			return fmt.Errorf("opening the power button: %w", err)
		}
		buttons = append(buttons, f)
	}
	if len(buttons) == 0 {
		return errors.New("there is no power button: only the guest channel can shut this machine down")
	}
	stop := context.AfterFunc(ctx, func() {
		for _, f := range buttons {
			f.Close()
		}
	})
	defer stop()
	var watchers sync.WaitGroup
	for _, f := range buttons {
		watchers.Go(func() { watch(f, pressed) })
	}
	watchers.Wait()
	return ctx.Err()
}

func watch(f *os.File, pressed func()) {
	const timeSize = int(unsafe.Sizeof(unix.Timeval{}))
	event := make([]byte, timeSize+len(powerKey))
	for {
		if _, err := f.Read(event); err != nil {
			return
		}
		if binary.NativeEndian.Uint64(event[timeSize:]) == binary.NativeEndian.Uint64(powerKey[:]) {
			pressed()
		}
	}
}
