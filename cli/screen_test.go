package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// TestFrame: what was painted is painted over, and nothing is longer or higher than the
// terminal.
func TestFrame(t *testing.T) {
	for _, c := range []struct {
		name                   string
		lines                  []string
		painted, width, height int
		want                   string
	}{
		{"first", []string{"a", "b"}, 0, 80, 24, "\ra\x1b[K\n\rb\x1b[K\n\x1b[J"},
		{"again", []string{"c"}, 2, 80, 24, "\x1b[2A\rc\x1b[K\n\x1b[J"},
		{"too wide", []string{"0123456789"}, 0, 8, 24, "\r012345…\x1b[K\n\x1b[J"},
		{"too high", []string{"1", "2", "3", "4", "5"}, 0, 80, 4, "\r1\x1b[K\n\r2\x1b[K\n\r… and 3 more\x1b[K\n\x1b[J"},
		{"gone", nil, 1, 80, 24, "\x1b[1A\x1b[J"},
	} {
		if got := frame(c.lines, c.painted, c.width, c.height); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestShow: away from a terminal each change is told once, without what changes all the
// time.
func TestShow(t *testing.T) {
	var b strings.Builder
	s := newScreen(&b)
	s.show([]line{{key: "a", text: "├─ a starts"}, {key: "b", text: "└─ b starts", detail: "1%"}})
	s.show([]line{{key: "a", text: "├─ a starts"}, {key: "b", text: "└─ b starts", detail: "2%"}})
	s.show([]line{{key: "a", text: "├─ a runs"}, {key: "b", text: "└─ b starts"}})
	if want := "a starts\nb starts\na runs\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m",
		2 * time.Hour: "2h", 47 * time.Hour: "47h", 48 * time.Hour: "2d", 1000 * time.Hour: "41d",
	} {
		if got := duration(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

func TestProgress(t *testing.T) {
	for _, c := range []struct {
		p    *vee.Progress
		want string
	}{
		{nil, ""},
		{&vee.Progress{Done: 12 << 20, Total: 40 << 20, Unit: "bytes", What: "fetch appliance"}, "fetch appliance 12MiB of 40MiB (30%)"},
		{&vee.Progress{Done: 3, Total: 4, Unit: "steps"}, "3 of 4 (75%)"},
		{&vee.Progress{Done: 5 << 10, Unit: "bytes"}, "5KiB"},
		{&vee.Progress{Done: 9, Total: 4, Unit: "steps", What: "\x1b[2Jbad\n"}, " [2Jbad  9 of 4 (100%)"},
	} {
		if got := progress(c.p); got != c.want {
			t.Errorf("%+v: %q, want %q", c.p, got, c.want)
		}
	}
}

// TestSettled: --wait ends when everything is so, and not before.
func TestSettled(t *testing.T) {
	ready := func() smi.Service {
		return smi.Service{Name: "web", Phase: smi.Ready, Components: []smi.Component{{Desired: 1, Ready: 1, Replicas: []smi.Replica{{Number: 1, Ready: true}}}}}
	}
	for _, c := range []struct {
		name   string
		change func(*smi.Service)
		done   bool
		fails  bool
	}{
		{"ready", func(*smi.Service) {}, true, false},
		{"one is missing", func(s *smi.Service) { s.Components[0].Desired = 2 }, false, false},
		{"one too many", func(s *smi.Service) { s.Components[0].Replicas = append(s.Components[0].Replicas, smi.Replica{}) }, false, false},
		{"deploying", func(s *smi.Service) { s.Phase = smi.Deploying }, false, false},
		{"failing", func(s *smi.Service) { s.Phase = smi.Failing }, false, true},
		{"deleted meanwhile", func(s *smi.Service) { s.Phase = smi.Deleting }, false, true},
	} {
		s := ready()
		c.change(&s)
		if done, err := settled(s); done != c.done || (err != nil) != c.fails {
			t.Errorf("%s: %v, %v", c.name, done, err)
		}
	}
}

func TestImageName(t *testing.T) {
	for href, want := range map[string]string{"disk.qcow2": "web/disk", "disks/Root_1.img": "web/root-1", "_.raw": "web/disk", "a": "web/a"} {
		if got := imageName("web", href); got != want {
			t.Errorf("%s: %s, want %s", href, got, want)
		}
	}
}

// TestWatch: away from a terminal a watched list tells what is new or different, a line
// each, with the heads once.
func TestWatch(t *testing.T) {
	l := listing[smi.Service]{
		columns: []column[smi.Service]{{head: "NAME", cell: func(s smi.Service) string { return s.Name }}, {head: "PHASE", cell: func(s smi.Service) string { return string(s.Phase) }}},
		name:    func(s smi.Service) string { return s.Name },
	}
	for f, want := range map[format]string{
		"table": "NAME  PHASE\na     ready\nb     ready\na     degraded\n",
		"name":  "a\nb\na\n",
	} {
		ch := make(chan []smi.Service, 4)
		ch <- []smi.Service{{Name: "a", Phase: smi.Ready}}
		ch <- []smi.Service{{Name: "a", Phase: smi.Ready}, {Name: "b", Phase: smi.Ready}}
		ch <- []smi.Service{{Name: "a", Phase: smi.Ready}}
		ch <- []smi.Service{{Name: "a", Phase: smi.Degraded}}
		close(ch)
		var b strings.Builder
		if err := l.watch(t.Context(), &app{out: &b}, f, ch); err != nil {
			t.Error(err)
		}
		if b.String() != want {
			t.Errorf("%s: %q, want %q", f, b.String(), want)
		}
	}
}
