package manifest

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
)

func TestSizeIn(t *testing.T) {
	for _, c := range []struct {
		amount, unit string
		want         vee.Bytes
		err          error
	}{
		{"512", "byte * 2^20", 512 * vee.MiB, nil},
		{" 3 ", "byte*2^30", 3 * vee.GiB, nil},
		{"7", "byte", 7, nil},
		{"5", "byte * 1024", 5 * vee.KiB, nil},
		{"2", "byte * 10^9", 2_000_000_000, nil},
		{"1024", "MegaBytes", vee.GiB, nil},
		{"2", "GB", 2 * vee.GiB, nil},
		{"1536MB", "", 1536 * vee.MiB, nil},
		{"10", "", 10, nil},
		{"0", "byte * 2^40", 0, nil},
		{"9223372036854775807", "byte", 1<<63 - 1, nil},
		{"9223372036854775808", "byte", 0, errTooLarge},
		{"8388608", "byte * 2^40", 0, errTooLarge},
		{"1", "byte * 2^99", 0, errTooLarge},
		{"1", "byte * 9999999999999999999^99", 0, errTooLarge},
		{"16777216", "TB", 0, errTooLarge},
		{"-1", "byte * 2^20", 0, errSize},
		{"-1", "MB", 0, errSize},
		{"1.5", "byte * 2^20", 0, errSize},
		{"1", "byte * 2^x", 0, errSize},
		{"1", "hertz * 10^6", 0, errSize},
		{"", "MB", 0, errSize},
		{"1e3", "byte", 0, errSize},
	} {
		got, err := sizeIn(c.amount, c.unit)
		if got != c.want || err != c.err {
			t.Errorf("%q %q: got %d, %v, want %d, %v", c.amount, c.unit, got, err, c.want, c.err)
		}
	}
}

func TestMHzIn(t *testing.T) {
	for _, c := range []struct {
		amount, unit string
		want         MHz
		ok           bool
	}{
		{"500", "hertz * 10^6", 500, true},
		{"2", "hertz * 10^9", 2000, true},
		{"2400000000", "hertz", 2400, true},
		{"1000", "MHz", 1000, true},
		{"2.4GHz", "", 2400, true},
		{"500MHz", "", 500, true},
		{"500", "", 0, false},
		{"-5", "MHz", 0, false},
		{"99999999999", "GHz", 0, false},
		{"NaN", "MHz", 0, false},
	} {
		got, err := mhzIn(c.amount, c.unit)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("%q %q: got %d, %v", c.amount, c.unit, got, err)
		}
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "90": 90 * time.Second, "1h30m": 90 * time.Minute, "10 minutes": 10 * time.Minute,
		"30d": 720 * time.Hour, "1 month": 720 * time.Hour, "2w": 336 * time.Hour, "1 year": 8760 * time.Hour,
		"1.5h": 90 * time.Minute, "250ms": 250 * time.Millisecond, "0s": 0,
	} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil || time.Duration(d) != want {
			t.Errorf("%q: got %s, %v, want %s", text, time.Duration(d), err, want)
		}
	}
	for _, text := range []string{"", "soon", "-5s", "300 years", "1 fortnight", "9999999999h", "1e9s", "5 5"} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != errDuration {
			t.Errorf("%q: got %s, %v", text, time.Duration(d), err)
		}
	}
}

// TestUnitsComeBack: what is written is read as the same, and never negative.
func TestUnitsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := vee.Bytes(rapid.Int64Min(0).Draw(t, "bytes"))
		if got, err := parseSize(formatSize(b)); got != b || err != nil {
			t.Fatalf("%d as %s: got %d, %v", b, formatSize(b), got, err)
		}
		amount, unit := sizeOut(b)
		if got, err := sizeIn(amount, unit); got != b || err != nil {
			t.Fatalf("%d as %s %s: got %d, %v", b, amount, unit, got, err)
		}
		for _, text := range []string{rapid.String().Draw(t, "text"), rapid.StringMatching(`-?[0-9]{1,25}(\.[0-9]{1,5})?[a-zA-Z ]{0,9}`).Draw(t, "number")} {
			if got, err := parseSize(text); err == nil && got < 0 {
				t.Fatalf("%q is %d", text, got)
			}
			var d Duration
			if err := d.UnmarshalText([]byte(text)); err == nil && d < 0 {
				t.Fatalf("%q is %s", text, time.Duration(d))
			}
		}
	})
}

func TestStartOrder(t *testing.T) {
	for _, c := range []struct {
		name, components string // NAME[:ORDER][<AFTER,…]
		want             [][]string
		err              string
	}{
		{"no order", "a b c", [][]string{{"a", "b", "c"}}, ""},
		{"numbers", "a:2 b:1 c:3 d:2", [][]string{{"b"}, {"a", "d"}, {"c"}}, ""},
		{"no number has no place", "a:2 b c:1", [][]string{{"b", "c"}, {"a"}}, ""},
		{"after", "a<b b<c c", [][]string{{"c"}, {"b"}, {"a"}}, ""},
		{"diamond", "a<b,c b<d c<d d", [][]string{{"d"}, {"b", "c"}, {"a"}}, ""},
		{"both", "a:1 b:2 c<b", [][]string{{"a"}, {"b"}, {"c"}}, ""},
		{"itself", "a<a", nil, "start order has a cycle: a → a"},
		{"three", "x<a a<b b<c c<a", nil, "start order has a cycle: a → b → c → a"},
		{"number against after", "a:1<b b:2", nil, "start order has a cycle: a → b → a"},
	} {
		s := &Service{}
		for _, text := range strings.Fields(c.components) {
			var k Component
			text, after, _ := strings.Cut(text, "<")
			if after != "" {
				k.StartAfter = strings.Split(after, ",")
			}
			name, order, ordered := strings.Cut(text, ":")
			k.Name = name
			if ordered {
				k.Startup = &Startup{Order: int(order[0] - '0')}
			}
			s.Components = append(s.Components, k)
		}
		got, err := s.StartOrder()
		if !reflect.DeepEqual(got, c.want) || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%s: got %v, %v", c.name, got, err)
		}
	}
}

func TestDescriptor(t *testing.T) {
	s := mustParse(t, "everything.yaml", read(t, "testdata/valid/everything.yaml"))
	by := Owner{Customer: "acme", GroupID: "alpha.grid", FQNPrefix: "alpha.customers.acme.services.grid.vees.db.replicas.3", Domain: "grid.alpha.internal"}
	d := s.Descriptor(s.Component("db"), 3, by)
	want := vee.Descriptor{
		Name: "db-3", Customer: "acme", GroupID: "alpha.grid", FQNPrefix: by.FQNPrefix,
		Hypervisor: "qemu", VCPUs: 2, VCPUsMax: 4, CPU: vee.CPUShare{ReservationMHz: 1000, LimitMHz: 4000, Weight: 200},
		Memory: vee.GiB, MemoryMax: 2 * vee.GiB,
		Disks: []vee.Disk{
			{Name: "root", Source: "debian.qcow2"},
			{Name: "data", Size: 20 * vee.GiB, Target: "vdb", Persistent: true},
			{Name: "seed", Source: "https://images.example/seed.iso.gz", CDROM: true},
			{Name: "scratch", Source: "registry.example/scratch:1", Size: 1536 * vee.MiB},
		},
		NICs:        []vee.NIC{{Network: "backend", Target: "eth0", Address: "10.1.0.10"}},
		Tags:        []string{"db", "database", "stateful", "apart.2", "apart.3"},
		Raw:         map[string]string{"qemu": "-device pvpanic"},
		Restart:     vee.RestartElse,
		Reliability: vee.Reliability{CheckpointMS: 300_000, Keep: 3, From: vee.FromCheckpoint, HeartbeatMS: 30_000},
		Ports:       []int{5432},
		Where: vee.Where{Partners: vee.PartnersCost, Sites: []string{"alpha", "beta"}, Without: []string{"gamma", "delta"}, Countries: []vee.Area{{Name: "SE"}, {Name: "DE", Outside: true}},
			Jurisdictions: []vee.Area{{Name: "EU"}}, Requirement: `load < 0.5 && country == "SE"`, Users: &vee.Point{Latitude: 60, Longitude: 24}, Reservation: "alpha.aaaaaaaaaa"},
		Naming: vee.Naming{Domain: "grid.alpha.internal", Own: []string{"db-3.db", "db-3"}, Shared: []string{"db"}},
		Firewall: []vee.FirewallRule{
			{Allow: true, Protocol: "tcp", First: 5432, Last: 5432, PeerTag: "master"}, {Allow: true, Protocol: "icmp", PeerPrefix: "10.0.0.0/8"}, {Protocol: "any"},
		},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got  %+v\nwant %+v", d, want)
	}
	if got := s.Apart(Physical); !reflect.DeepEqual(got, []string{"executor", "apart.2"}) {
		t.Errorf("apart: %v", got)
	}

	master := s.Descriptor(s.Component("master"), 1, by)
	if !master.NICs[1].Public || master.NICs[0].Public {
		t.Errorf("NICs %+v", master.NICs)
	}
}
