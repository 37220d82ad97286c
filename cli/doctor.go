package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/cli/doctor"
	"github.com/reservoir-cloud/reservoir/hypervisor/libvirt"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu/cgroup"
	"github.com/reservoir-cloud/reservoir/internal/fault"
)

var findingListing = listing[doctor.Finding]{
	columns: []column[doctor.Finding]{
		{head: "CHECK", cell: func(f doctor.Finding) string { return f.Check }},
		{head: "LEVEL", cell: func(f doctor.Finding) string { return string(f.Level) }},
		{head: "FOUND", cell: func(f doctor.Finding) string { return f.Found }},
		{head: "FIX", cell: func(f doctor.Finding) string { return f.Fix }, wide: true},
	},
	name: func(f doctor.Finding) string { return f.Check },
}

func (a *app) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "doctor", Short: "Does this machine have what is needed? Each lack with its fix",
		Long: `See whether this machine has what Reservoir needs: programs, kernel features, an
accelerator that boots a guest, ports, disk, memory. Each lack comes with the command
that mends it. The exit code is 1 when something needed is missing.`}
	dir := cmd.Flags().String("dir", "/var/lib/reservoir", "where guests' disks will be")
	driver := cmd.Flags().String("driver", "qemu", "what the host's --driver will be")
	f := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		machine := doctor.Machine{Dir: *dir, Accelerator: probe,
			CgroupMissing: func() []string { return cgroup.Find(cgroup.Root, "reservoir").Missing() }}
		if name, uri, _ := strings.Cut(*driver, ":"); name == libvirt.Name {
			machine.Libvirt = func(ctx context.Context) (string, error) { return libvirt.Version(ctx, uri) }
		}
		screen := newScreen(a.err)
		screen.show([]line{{key: "doctor", text: "looking at this machine; the test boot of a guest takes some seconds"}})
		facts, err := doctor.Gather(cmd.Context(), machine)
		if err != nil {
			return err
		}
		list := doctor.Judge(facts)
		if err := findingListing.print(a, *f, list); err != nil {
			return err
		}
		if *f == "table" {
			a.showFixes(list)
		}
		if doctor.Worst(list) == doctor.Problem {
			return fault.New(fault.Internal, "this machine lacks something that is needed").Try("the fixes above, then again: reservoir doctor")
		}
		return nil
	}
	return cmd
}

// showFixes one by one below the table, each once: they are to be copied.
func (a *app) showFixes(list []doctor.Finding) {
	shown := map[string]bool{}
	for _, f := range list {
		if f.Fix == "" || shown[f.Fix] {
			continue
		}
		shown[f.Fix] = true
		a.printf("\n%s: %s\n  fix: %s\n", f.Level, f.Check, f.Fix)
	}
}

// probe is the test boot that a host's agent would make.
func probe(ctx context.Context) (name, why string, err error) {
	p, err := qemu.Probe(ctx, qemu.Config{})
	if err != nil {
		return "", "", fmt.Errorf("test boot: %w", err)
	}
	return p.Accelerator, p.Why, nil
}
