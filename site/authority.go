package site

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
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

// unsealed authority of a box.
func unsealed(b seal.Box, site, file string) (*identity.CA, error) {
	pass, err := passphrase(file)
	if err != nil {
		return nil, err
	}
	text, err := b.Open(pass, about(site))
	if err != nil {
		return nil, fmt.Errorf("with %s: %w", file, err)
	}
	return identity.ParseCA(identity.Secret(text), site, time.Now)
}

// sealed box of an authority.
func sealed(ca *identity.CA, file string) (seal.Box, error) {
	if err := newPassphrase(file); err != nil {
		return seal.Box{}, err
	}
	pass, err := passphrase(file)
	if err != nil {
		return seal.Box{}, err
	}
	text, err := ca.Export()
	if err != nil {
		return seal.Box{}, err
	}
	return seal.Seal(pass, about(ca.Site()), []byte(text.Reveal()))
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
		m.ca, err = unsealed(b, m.cfg.Name, m.cfg.unseal())
		return err
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the site's sealed authority: %w", err)
	}
	old := filepath.Join(m.cfg.Dir, oldCADir)
	if _, err := os.Stat(filepath.Join(old, "ca.key")); err == nil {
		if m.ca, err = identity.OpenCA(old, m.cfg.Name, time.Now); err != nil {
			return err
		}
	} else if m.several() && m.keys.Ready() || m.cfg.Member.JoinToken != "" || len(m.cfg.EtcdEndpoints) > 0 {
		return nil
	} else if m.ca, err = identity.NewCA(m.cfg.Name, time.Now); err != nil {
		return err
	}
	if b, err = sealed(m.ca, m.cfg.unseal()); err != nil {
		return err
	}
	return durable.WriteJSON(filepath.Join(m.cfg.Dir, sealedFile), b, 0o600)
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
			if m.ca, err = identity.NewCA(m.cfg.Name, time.Now); err != nil {
				return err
			}
			if mine, err = sealed(m.ca, m.cfg.unseal()); err != nil {
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
	if m.ca == nil || !same(mine, kept) {
		if m.ca, err = unsealed(kept, m.cfg.Name, m.cfg.unseal()); err != nil {
			return err
		}
	}
	if err := durable.WriteJSON(filepath.Join(m.cfg.Dir, sealedFile), kept, 0o600); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(m.cfg.Dir, oldCADir)); err != nil {
		return fmt.Errorf("remove the authority's key in the clear: %w", err)
	}
	return nil
}

func same(a, b seal.Box) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}
