package billing

import (
	"fmt"
	"time"
)

// Period after which invoices are issued by themselves, of the calendar in UTC.
type Period string

// Periods. Never: by hand alone.
const (
	Never   Period = ""
	Daily   Period = "daily"
	Weekly  Period = "weekly" // from Monday on
	Monthly Period = "monthly"
)

// Check the period.
func (p Period) Check() error {
	switch p {
	case Never, Daily, Weekly, Monthly:
		return nil
	}
	return fmt.Errorf("invoices %q: want %s, %s or %s, or leave it out to issue them by hand", p, Daily, Weekly, Monthly)
}

// After a moment, the first end of a period.
func (p Period) After(t time.Time) time.Time {
	year, month, day := t.UTC().Date()
	switch p {
	case Monthly:
		month, day = month+1, 1
	case Weekly:
		day += 7 - (int(t.UTC().Weekday())+6)%7
	default:
		day++
	}
	return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
}
