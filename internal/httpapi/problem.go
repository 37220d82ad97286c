package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// problemDetails is an RFC 9457 problem document with two members of our own: code and next.
type problemDetails struct {
	Type   string     `json:"type" doc:"urn:reservoir:error:CODE"`
	Title  string     `json:"title"`
	Status int        `json:"status"`
	Detail string     `json:"detail,omitempty"`
	Code   fault.Code `json:"code"`
	Next   string     `json:"next,omitempty" doc:"what to try next"`
}

func (p *problemDetails) Error() string             { return p.Detail }
func (p *problemDetails) GetStatus() int            { return p.Status }
func (p *problemDetails) ContentType(string) string { return "application/problem+json" }
func typeOf[T any]() reflect.Type                   { return reflect.TypeFor[T]() }

func problemOf(f *fault.Error) *problemDetails {
	return &problemDetails{
		Type: "urn:reservoir:error:" + string(f.Code), Title: http.StatusText(f.Status()),
		Status: f.Status(), Detail: f.Message, Code: f.Code, Next: f.NextStep(),
	}
}

// newProblem is what the library calls for errors of its own (validation, unknown path).
func newProblem(status int, msg string, errs ...error) huma.StatusError {
	var b strings.Builder
	b.WriteString(msg)
	for i, e := range errs {
		if i == 8 {
			fmt.Fprintf(&b, "; and %d more", len(errs)-i)
			break
		}
		fmt.Fprintf(&b, "; %v", e)
	}
	code := fault.Malformed
	switch {
	case status == http.StatusRequestEntityTooLarge:
		code = fault.TooLarge
	case status >= 500:
		code = fault.Internal
	}
	p := problemOf(fault.New(code, "%s", b.String()))
	p.Status, p.Title = status, http.StatusText(status)
	return p
}

// Refuse a request of a plain handler.
func Refuse(w http.ResponseWriter, err error) { writeProblem(w, fault.From(err)) }

func writeProblem(w http.ResponseWriter, f *fault.Error) {
	p := problemOf(f)
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
