package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// keyHeader names a call, so that its repetition is known for one.
const keyHeader = "Idempotency-Key"

// maxKey bounds a key, in bytes.
const maxKey = 128

// Receipts remember what calls under an Idempotency-Key have answered; a receipt.Book does.
type Receipts interface {
	// Once does a call unless one was done under the same key, whose answer it returns then.
	// Errors: those of do; fault.Conflict where the key was used for another request.
	Once(ctx context.Context, key string, request any, do func(context.Context) (json.RawMessage, error)) (json.RawMessage, error)
}

// Receipts has every operation that changes something take an Idempotency-Key, except those
// that are Unkeyed. It must be called before operations are registered.
func (s *Server) Receipts(r Receipts) { s.receipts = r }

type (
	keyReceived struct{}
	keyToSend   struct{}
)

// WithKey has the calls that a Client makes with this context carry an Idempotency-Key: with
// the same key, a call that is repeated is not done again and answers the same.
func WithKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, keyToSend{}, key)
}

// Key of the call that is being served; empty: it has none.
func Key(ctx context.Context) string {
	key, _ := ctx.Value(keyReceived{}).(string)
	return key
}

// Changes reports whether the operation is one to change something: an operation that an
// auditor may call changes nothing, whatever its method.
func (o Op) Changes() bool {
	return o.Method != http.MethodGet && !o.Asks && !slices.Contains(o.Roles, identity.Auditor)
}

// keyParam describes the header.
func keyParam() *huma.Param {
	most := maxKey
	return &huma.Param{
		Name: keyHeader, In: "header", Schema: &huma.Schema{Type: huma.TypeString, MaxLength: &most},
		Description: "a call repeated under the same key is not done again and answers the same",
	}
}

// once does an operation under the key that the call has, if it has one. What the caller is
// told comes from the receipt's text the first time too, so that it is the same every time.
func once[O any](ctx context.Context, s *Server, op Op, in any, do func(context.Context) (O, error)) (out O, err error) {
	key := Key(ctx)
	switch {
	case key == "" || s.receipts == nil || op.Unkeyed || !op.Changes():
		return do(ctx)
	case len(key) > maxKey:
		return out, fault.New(fault.Malformed, "%s of %d bytes: want at most %d", keyHeader, len(key), maxKey)
	}
	c := identity.From(ctx)
	request := struct {
		Op string
		In any
	}{op.Method + " " + op.Path, in}
	text, err := s.receipts.Once(ctx, c.Scope()+"/"+key, request, func(ctx context.Context) (json.RawMessage, error) {
		out, err := do(ctx)
		if err != nil {
			return nil, err
		}
		return json.Marshal(out)
	})
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	return out, err
}
