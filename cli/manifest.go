package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func (a *app) manifestCmd() *cobra.Command {
	return noun("manifest", "Check and convert manifests, without a site", a.manifestCheck(), a.manifestConvert())
}

func (a *app) manifestCheck() *cobra.Command {
	return &cobra.Command{Use: "check FILE…", Short: "Find the mistakes in manifests",
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, file := range args {
				p, err := a.readPackage(cmd.Context(), file)
				if err != nil {
					return err
				}
				if err := p.Close(); err != nil {
					return err
				}
				a.printf("%s: service %s, %s\n", file, p.service.Name, count(len(p.service.Components), "component"))
				for _, n := range p.service.NotInEffect() {
					a.printf("not yet in effect: %s\n", oneLine(n))
				}
			}
			return nil
		}}
}

func (a *app) manifestConvert() *cobra.Command {
	cmd := &cobra.Command{Use: "convert FILE", Short: "Write a manifest in the other form: YAML or OVF",
		Example: `  reservoir manifest convert web.ovf > web.yaml
  reservoir manifest convert web.yaml --to ovf`}
	to := cmd.Flags().String("to", "", "yaml or ovf (the other one)")
	_ = cmd.RegisterFlagCompletionFunc("to", cobra.FixedCompletions([]string{"yaml", "ovf"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := a.readPackage(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		defer p.Close()
		if *to == "" {
			*to = "ovf"
			if isOVF(p.text) {
				*to = "yaml"
			}
		}
		write := p.service.YAML
		switch *to {
		case "yaml":
		case "ovf":
			write = p.service.OVF
		default:
			return fault.New(fault.Malformed, "--to %q: want yaml or ovf", *to)
		}
		text, err := write()
		if err != nil {
			return fmt.Errorf("convert %s to %s: %w", args[0], *to, err)
		}
		_, err = a.out.Write(text)
		return err
	}
	return cmd
}

// isOVF: what manifest.Parse decides by.
func isOVF(text string) bool {
	for _, r := range text {
		switch r {
		case ' ', '\t', '\r', '\n', '\ufeff':
		default:
			return r == '<'
		}
	}
	return false
}
