package site

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/seal"
	"github.com/reservoir-cloud/reservoir/internal/store"
)

// The key of the site's authority is nowhere but in a sealed box (ADR 21): in the record of
// truth, where every member finds it, and beside it as a copy, since a member needs a
// certificate of it before it can read the record. What opens the box is in the unseal file,
// which a person brings to each machine and to a restore, and which no backup holds.

// Files of a site's directory.
const (
	sealedFile = "authority.sealed"
	unsealFile = "unseal.key"
	oldCADir   = "ca" // of versions that kept the key in the clear
)

func (c *Config) unseal() string {
	if c.UnsealFile != "" {
		return c.UnsealFile
	}
	return filepath.Join(c.Dir, unsealFile)
}

func boxes(s *store.Store) store.Collection[seal.Box] {
	return store.NewCollection[seal.Box](s, "authority")
}

const boxKey = "ca"

func about(site string) string { return "the authority of site " + site }

// passphrase that is in the unseal file.
func passphrase(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.NotFound, "the authority's key is sealed, and what opens it is not in %s: %w", path, err).
			Try("bring the file %s of another member, or the one that was kept beside the backups: --unseal-file FILE", unsealFile)
	}
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.WrongState, "%s is open to other users (mode %04o)", path, info.Mode().Perm()).
			Try("chmod 600 %s, and consider whether somebody has read it", path)
	}
	if text = bytes.TrimSpace(text); len(text) < 12 {
		return nil, fault.New(fault.Malformed, "the pass phrase in %s: want at least 12 characters", path)
	}
	return text, err
}

// newPassphrase makes the unseal file of a new site, unless a person has.
func newPassphrase(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return durable.WriteFile(path, []byte(rand.Text()+rand.Text()+"\n"), 0o600)
}

// unsealed text of an authority.
func unsealed(b seal.Box, site, file string) (identity.Secret, error) {
	pass, err := passphrase(file)
	if err != nil {
		return "", err
	}
	text, err := b.Open(pass, about(site))
	if err != nil {
		return "", fmt.Errorf("with %s: %w", file, err)
	}
	return identity.Secret(text), nil
}

// sealed box of an authority's text.
func sealed(text identity.Secret, site, file string) (seal.Box, error) {
	if err := newPassphrase(file); err != nil {
		return seal.Box{}, err
	}
	pass, err := passphrase(file)
	if err != nil {
		return seal.Box{}, err
	}
	return seal.Seal(pass, about(site), []byte(text.Reveal()))
}

// sealAuthority that has just been made.
func (m *member) sealAuthority() (seal.Box, error) {
	text, err := m.ca.Export()
	if err != nil {
		return seal.Box{}, err
	}
	return sealed(text, m.cfg.Name, m.cfg.unseal())
}

// unsealAuthority of a box. What becomes of it is kept where the box was.
func (m *member) unsealAuthority(b seal.Box) error {
	text, err := unsealed(b, m.cfg.Name, m.cfg.unseal())
	if err == nil {
		m.ca, err = identity.ParseCA(text, m.cfg.Name, time.Now, m.keepAuthority)
	}
	return err
}

// keepAuthority in the record of truth and on this machine. Only the leader's changes.
func (m *member) keepAuthority(text identity.Secret) error {
	b, err := sealed(text, m.cfg.Name, m.cfg.unseal())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), keepPatience)
	defer cancel()
	if _, err := boxes(m.store).Put(ctx, boxKey, b); err != nil {
		return err
	}
	return durable.WriteJSON(filepath.Join(m.cfg.Dir, sealedFile), b, 0o600)
}

// keepPatience is how long the record of truth may take with an authority.
const keepPatience = 10 * time.Second

// followAuthority is for a member that has not made the changes of the authority itself.
func (m *member) followAuthority(ctx context.Context) error {
	b, _, err := boxes(m.store).Get(ctx, boxKey)
	if err != nil {
		return err
	}
	text, err := unsealed(b, m.cfg.Name, m.cfg.unseal())
	if err != nil {
		return err
	}
	return m.ca.Adopt(text)
}

func readBox(dir string) (b seal.Box, err error) {
	err = durable.ReadJSON(filepath.Join(dir, sealedFile), &b)
	return b, err
}

// openAuthority as this machine has it, or makes the one of a new site. nil: it is in the
// record of truth alone, which this machine has joined.
func (m *member) openAuthority() error {
	b, err := readBox(m.cfg.Dir)
	switch {
	case err == nil:
		return m.unsealAuthority(b)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the site's sealed authority: %w", err)
	}
	old := filepath.Join(m.cfg.Dir, oldCADir)
	if text, err := oldAuthority(old); err == nil {
		if m.ca, err = identity.ParseCA(text, m.cfg.Name, time.Now, nil); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the site's certificate authority: %w", err)
	} else if m.several() && m.keys.Ready() || m.cfg.Member.JoinToken != "" || len(m.cfg.EtcdEndpoints) > 0 {
		return nil
	} else if m.ca, err = identity.NewCA(m.cfg.Name, time.Now, nil); err != nil {
		return err
	}
	if b, err = m.sealAuthority(); err != nil {
		return err
	}
	if err := durable.WriteJSON(filepath.Join(m.cfg.Dir, sealedFile), b, 0o600); err != nil {
		return err
	}
	return m.unsealAuthority(b)
}

// oldAuthority of a version that kept key and certificate in the clear.
func oldAuthority(dir string) (identity.Secret, error) {
	key, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		return "", err
	}
	cert, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	return identity.Secret(append(key, cert...)), err
}

// settleAuthority makes the one in the record of truth this machine's, and this machine's that
// of the record where it has none.
func (m *member) settleAuthority(ctx context.Context) error {
	mine, err := readBox(m.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the site's sealed authority: %w", err)
	}
	kept, _, err := boxes(m.store).Get(ctx, boxKey)
	if fault.Has(err, fault.NotFound) {
		if m.ca == nil { // a new site whose record is elsewhere
			if m.ca, err = identity.NewCA(m.cfg.Name, time.Now, nil); err != nil {
				return err
			}
			if mine, err = m.sealAuthority(); err != nil {
				return err
			}
		}
		if _, err = boxes(m.store).Create(ctx, boxKey, mine); err == nil {
			kept = mine
		} else if fault.Has(err, fault.Exists) { // another member was first
			kept, _, err = boxes(m.store).Get(ctx, boxKey)
		}
	}
	if err != nil {
		return err
	}
	if err := m.unsealAuthority(kept); err != nil {
		return err
	}
	if err := durable.WriteJSON(filepath.Join(m.cfg.Dir, sealedFile), kept, 0o600); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(m.cfg.Dir, oldCADir)); err != nil {
		return fmt.Errorf("remove the authority's key in the clear: %w", err)
	}
	return nil
}
