// Package fault is the one catalogue of errors that leave a process: each code has a
// status and the next command to try. Everything inside wraps errors with %w as usual;
// where a person or a peer will read one, it is a *fault.Error.
package fault

import (
	"errors"
	"fmt"
)

// Code names a kind of error, stable between versions.
type Code string

// kind of error: its HTTP status (RFC 9110) and what to try next.
type kind struct {
	status int
	next   string
}

// The catalogue. A Next given to an error itself goes before the one here.
const (
	Internal        Code = "internal"
	Malformed       Code = "malformed"
	NotFound        Code = "not-found"
	Exists          Code = "already-exists"
	WrongState      Code = "wrong-state"
	NoResources     Code = "not-enough-resources"
	Denied          Code = "access-denied"
	Unauthenticated Code = "unauthenticated"
	Conflict        Code = "version-conflict"
	StaleEpoch      Code = "stale-epoch"
	StoreFull       Code = "store-full"
	DiskFull        Code = "disk-full"
	Unavailable     Code = "unavailable"
	Unsupported     Code = "unsupported"
	DigestMismatch  Code = "digest-mismatch"
	TooLarge        Code = "too-large"
	Timeout         Code = "timeout"
	TokenInvalid    Code = "token-invalid"
	InUse           Code = "in-use"
	QuotaExceeded   Code = "quota-exceeded"
)

var catalogue = map[Code]kind{
	Internal:        {500, "look at the process's log, then report it"},
	Malformed:       {400, "correct the place that the message names"},
	NotFound:        {404, "list what there is: reservoir service|vee|host|image list"},
	Exists:          {409, "choose another name, or delete the existing one first"},
	WrongState:      {409, "look at its state: reservoir vee show ID"},
	NoResources:     {409, "see what is free: reservoir host list -o wide"},
	Denied:          {403, "ask the site's operator for a token with the right role: reservoir site token create"},
	Unauthenticated: {401, "use a context with a valid token: reservoir context list"},
	Conflict:        {412, "read the object again and repeat the change"},
	StaleEpoch:      {409, "nothing to do: a newer command has overtaken this one"},
	StoreFull:       {507, "make room and clear the alarm: reservoir site compact"},
	DiskFull:        {507, "make room on that disk, or: reservoir image list, reservoir image remove"},
	Unavailable:     {503, "see whether the process runs: reservoir dev status, reservoir doctor"},
	Unsupported:     {501, "see what the hosts' drivers can do: reservoir host list -o wide"},
	DigestMismatch:  {422, "push the image again: reservoir image push"},
	TooLarge:        {413, "send less in one call"},
	Timeout:         {504, "wait longer with --timeout, or look: reservoir event list"},
	TokenInvalid:    {401, "get a new token: reservoir host invite, reservoir site token create"},
	InUse:           {409, "stop what uses it first"},
	QuotaExceeded:   {409, "delete what is not needed, or ask the site's operator for more: reservoir site quota set"},
}

// Codes lists the catalogue, for the documentation and its test.
func Codes() map[Code]string {
	m := make(map[Code]string, len(catalogue))
	for c, k := range catalogue {
		m[c] = k.next
	}
	return m
}

// Error is what leaves a process.
type Error struct {
	Code    Code
	Message string // what was being done to which object, and what went wrong
	Next    string // what to try next; empty: the catalogue's
	Err     error  // the cause, kept for the log, not sent
}

// New makes an error whose message is formatted like fmt.Errorf's; a %w cause is kept.
func New(c Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: c, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Try sets the next step where there is a better one than the catalogue's.
func (e *Error) Try(format string, args ...any) *Error {
	e.Next = fmt.Sprintf(format, args...)
	return e
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }

// Status is the HTTP status that goes with the code.
func (e *Error) Status() int {
	if k, ok := catalogue[e.Code]; ok {
		return k.status
	}
	return 500
}

// NextStep is the error's own next step or the catalogue's.
func (e *Error) NextStep() string {
	if e.Next != "" {
		return e.Next
	}
	return catalogue[e.Code].next
}

// Has reports whether err is or wraps an Error with code c.
func Has(err error, c Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == c
}

// From makes an *Error of any error; one that has no code yet is Internal.
func From(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		if err == error(e) { //nolint:errorlint // is it the very same, not wrapped?
			return e
		}
		return &Error{Code: e.Code, Message: err.Error(), Next: e.Next, Err: err}
	}
	return &Error{Code: Internal, Message: err.Error(), Err: err}
}
