// Package seal keeps a secret inside other data: whoever has the data and not the pass phrase
// learns nothing of it but its length, and cannot change it unnoticed.
//
// A key is made of the pass phrase by scrypt (RFC 7914), and the secret encrypted with it by
// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03), under what the secret is about as
// associated data: a box that was put in the place of another does not open.
package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/scrypt"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Box holds a sealed secret. It may be seen.
type Box struct {
	Scheme string `json:"scheme"`
	Salt   []byte `json:"salt"`
	Sealed []byte `json:"sealed"` // nonce and ciphertext
}

// scheme names all that a Box depends on. Another one is another text.
const scheme = "scrypt-32768-8-1/xchacha20poly1305"

// The cost of a guess: 32 MiB and about 0.1 s (RFC 7914, section 2).
const (
	costN, costR, costP = 1 << 15, 8, 1
	saltBytes           = 16
)

// Seal a secret that is about something, which is not secret.
func Seal(passphrase []byte, about string, secret []byte) (Box, error) {
	b := Box{Scheme: scheme, Salt: make([]byte, saltBytes)}
	rand.Read(b.Salt)
	aead, err := b.cipher(passphrase)
	if err != nil {
		return Box{}, fmt.Errorf("seal %s: %w", about, err)
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	b.Sealed = aead.Seal(nonce, nonce, secret, []byte(about))
	return b, nil
}

// Open gives the secret. Errors: fault.Denied for another pass phrase, a damaged box, or one
// that is about something else; fault.Unsupported for a scheme of the future.
func (b Box) Open(passphrase []byte, about string) ([]byte, error) {
	if b.Scheme != scheme {
		return nil, fault.New(fault.Unsupported, "open the seal of %s: scheme %.60q is not known here", about, b.Scheme).Try("use a newer Reservoir")
	}
	aead, err := b.cipher(passphrase)
	if err != nil {
		return nil, fmt.Errorf("open the seal of %s: %w", about, err)
	}
	refused := fault.New(fault.Denied, "open the seal of %s: the pass phrase is another, or it is damaged", about)
	if len(b.Sealed) < aead.NonceSize() {
		return nil, refused
	}
	secret, err := aead.Open(nil, b.Sealed[:aead.NonceSize()], b.Sealed[aead.NonceSize():], []byte(about))
	if err != nil {
		return nil, refused
	}
	return secret, nil
}

func (b Box) cipher(passphrase []byte) (cipher.AEAD, error) {
	key, err := scrypt.Key(passphrase, b.Salt, costN, costR, costP, chacha20poly1305.KeySize)
	if err != nil {
		return nil, err
	}
	return chacha20poly1305.NewX(key)
}
