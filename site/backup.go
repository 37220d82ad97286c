package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vee"
)

// notInBackups is what a copy of a site's directory leaves out: what opens the seal of its
// authority, and what somebody could say that he is the site by. Both are had anew.
var notInBackups = []string{unsealFile, oldCADir, "identity", "admin-token"}

// Backup copies the directory of a site that is not running, with its record of truth, its
// sealed authority and its images, to a directory that is not there yet. Guests go on
// meanwhile; of several members one is stopped for it and the others go on. There is no secret
// in it that is not sealed.
func Backup(dir, to string) error {
	lock, err := store.Lock(filepath.Join(dir, "store"))
	if err != nil {
		return fmt.Errorf("back up the site in %s: %w", dir, err)
	}
	defer lock.Close()
	if _, err := os.Stat(filepath.Join(dir, sealedFile)); err != nil {
		return fault.New(fault.WrongState, "back up the site in %s: its authority is not sealed: %w", dir, err).Try("start the site once with this version, and stop it again")
	}
	return copied(dir, to, func(string) error { return nil })
}

// Restore puts a backup in the place of a site that is lost, as a new generation of its
// record. The site that starts on it is in recovery: it gives nothing away and starts nothing
// that may run, until every host that it knows has reported or was fenced. Of several members
// it is the first; the others join it anew, in directories that are not there yet. unseal is
// the file with what opens the seal of its authority, which the new directory gets too. It
// answers with the generation.
func Restore(ctx context.Context, name, from, dir, unseal string, log *slog.Logger) (generation uint64, err error) {
	if !vee.ValidName(name) {
		return 0, fault.New(fault.Malformed, "site name %q: want a DNS label such as \"alpha\"", name)
	}
	if _, err := os.Stat(filepath.Join(from, "store")); err != nil {
		return 0, fault.New(fault.NotFound, "there is no backup of a site in %s: %w", from, err).Try("reservoir site backup --dir DIRECTORY --to COPY")
	}
	err = copied(from, dir, func(half string) error {
		if err := unsealable(name, half, unseal); err != nil {
			return err
		}
		s, err := store.Open(ctx, store.Config{Dir: filepath.Join(half, "store"), Prefix: "/reservoir/" + name + "/", Alone: true, Logger: log})
		if err != nil {
			return err
		}
		if s.Generation() == 1 {
			// A record of another name's would have been made anew just now.
			if n, err := store.NewCollection[any](s, "token").List(ctx, ""); err != nil || len(n) == 0 {
				return errors.Join(fault.New(fault.NotFound, "the backup in %s has no record of a site %q", from, name).Try("reservoir site restore --name NAME"), err, s.Close())
			}
		}
		if err := forgetMembers(ctx, s); err != nil {
			return errors.Join(err, s.Close())
		}
		generation, err = s.NextGeneration(ctx, uint64(time.Now().Unix()))
		return errors.Join(err, s.Close())
	})
	return generation, err
}

// unsealable: the authority in dir is that of the site and opens with the file unseal, which
// is copied there.
func unsealable(name, dir, unseal string) error {
	b, err := readBox(dir)
	if err != nil {
		return fault.New(fault.NotFound, "the backup has no sealed authority: %w", err).Try("restore a backup that was made by: reservoir site backup")
	}
	if unseal == "" {
		return fault.New(fault.Malformed, "the backup's authority is sealed").Try("reservoir site restore --unseal-file FILE: a copy of %s of the site that was lost", unsealFile)
	}
	if _, err := unsealed(b, name, unseal); err != nil {
		return fault.New(fault.From(err).Code, "%w", err).Try("name the site and the file that belong to the backup: reservoir site restore --name NAME --unseal-file FILE")
	}
	pass, err := passphrase(unseal)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, unsealFile), append(pass, '\n'), 0o600)
}

// forgetMembers and who led them: they are lost, or are to join anew.
func forgetMembers(ctx context.Context, s *store.Store) error {
	all := store.NewCollection[memberRow](s, "member")
	rows, err := all.List(ctx, "")
	if err != nil {
		return err
	}
	for _, r := range rows {
		if err := all.Delete(ctx, r.Key, 0); err != nil {
			return err
		}
	}
	if err := store.Leaders[leader](s).Delete(ctx, leaderKey, 0); err != nil && !fault.Has(err, fault.NotFound) {
		return err
	}
	return nil
}

// copied is from, at to, as finish leaves it: all of it or nothing.
func copied(from, to string, finish func(half string) error) (err error) {
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Exists, "%s is there already", to).Try("name a directory that is not there, or move that one away")
	}
	half := to + ".half"
	if err := os.RemoveAll(half); err != nil { // of an attempt that was cut off
		return fmt.Errorf("copy %s: %w", from, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(half))
		}
	}()
	if err := copyTree(from, half); err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, half, err)
	}
	if err := finish(half); err != nil {
		return err
	}
	if err := os.Rename(half, to); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return durable.SyncDir(filepath.Dir(to))
}

// copyTree copies directories and files with their modes, through to the disk, but for
// notInBackups.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if slices.Contains(notInBackups, rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch at := filepath.Join(to, rel); {
		case d.IsDir():
			return os.Mkdir(at, info.Mode().Perm())
		case info.Mode().IsRegular():
			return copyFile(path, at, info.Mode().Perm())
		default:
			return nil // a socket of a process that has ended
		}
	})
}

func copyFile(from, to string, mode fs.FileMode) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Sync()
}
