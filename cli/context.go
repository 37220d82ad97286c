package cli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// siteContext is how to reach one site and as whom.
type siteContext struct {
	Name string `yaml:"name" json:"name"`
	Site string `yaml:"site" json:"site"` // its name, which its certificate must prove
	URL  string `yaml:"url" json:"url"`
	// Others are URLs of the site's other members: any of them will do.
	Others []string `yaml:"others,omitempty" json:"others,omitempty"`
	CA     string   `yaml:"ca" json:"-"`    // PEM
	Token  string   `yaml:"token" json:"-"` // shown nowhere
}

// contexts is the file that keeps them; it holds tokens, so it is 0600.
type contexts struct {
	path     string
	Current  string        `yaml:"current,omitempty"`
	Contexts []siteContext `yaml:"contexts"`
}

// contextsPath is $RESERVOIR_CONFIG, else contexts.yaml in the user's configuration.
func contextsPath() (string, error) {
	if p := os.Getenv("RESERVOIR_CONFIG"); p != "" {
		return p, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fault.New(fault.Malformed, "find the contexts file: %w", err).Try("export RESERVOIR_CONFIG=FILE")
	}
	return filepath.Join(dir, "reservoir", "contexts.yaml"), nil
}

func loadContexts() (*contexts, error) {
	path, err := contextsPath()
	if err != nil {
		return nil, err
	}
	c := &contexts{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(b)) == 0 {
		return c, nil
	}
	if err == nil {
		err = yaml.Load(b, c, yaml.WithKnownFields())
	}
	if err != nil {
		return nil, fault.New(fault.Malformed, "read contexts: %s: %w", path, err).Try("correct the file, or remove it and: reservoir context add")
	}
	return c, nil
}

func (c *contexts) save() error {
	b, err := yaml.Dump(c, yaml.WithIndent(2))
	if err != nil {
		return fmt.Errorf("encode contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	if err := durable.WriteFile(c.path, b, 0o600); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	return nil
}

func (c *contexts) index(name string) int {
	return slices.IndexFunc(c.Contexts, func(x siteContext) bool { return x.Name == name })
}

// put adds x or replaces the one of its name. The first one becomes the current one.
func (c *contexts) put(x siteContext) {
	if i := c.index(x.Name); i >= 0 {
		c.Contexts[i] = x
	} else {
		c.Contexts = append(c.Contexts, x)
	}
	slices.SortFunc(c.Contexts, func(a, b siteContext) int { return cmp.Compare(a.Name, b.Name) })
	if c.index(c.Current) < 0 {
		c.Current = x.Name
	}
}

// remove drops those that f names, and chooses another current one where it was dropped.
func (c *contexts) remove(f func(siteContext) bool) {
	c.Contexts = slices.DeleteFunc(c.Contexts, f)
	if c.index(c.Current) < 0 {
		c.Current = ""
		if len(c.Contexts) > 0 {
			c.Current = c.Contexts[0].Name
		}
	}
}

func (c *contexts) get(name string) (siteContext, error) {
	if i := c.index(name); i >= 0 {
		return c.Contexts[i], nil
	}
	return siteContext{}, fault.New(fault.NotFound, "there is no context %q in %s", name, c.path).Try("reservoir context list")
}

// chosen is the context of this run: --context, $RESERVOIR_CONTEXT or the current one.
func (a *app) chosen() (siteContext, error) {
	c, err := loadContexts()
	if err != nil {
		return siteContext{}, err
	}
	name := cmp.Or(a.context, os.Getenv("RESERVOIR_CONTEXT"), c.Current)
	if name == "" {
		return siteContext{}, fault.New(fault.Unauthenticated, "no site to speak to: there is no context in %s", c.path).
			Try("reservoir dev up --detach, or for a real site: reservoir context add")
	}
	return c.get(name)
}

func (a *app) contextCmd() *cobra.Command {
	return noun("context", "The sites that you can speak to", a.contextList(), a.contextUse(), a.contextAdd(), a.contextRemove(), a.contextShow())
}

func (a *app) contextListing(current string) listing[siteContext] {
	return listing[siteContext]{
		columns: []column[siteContext]{
			{head: "CURRENT", cell: func(c siteContext) string {
				if c.Name == current {
					return "*"
				}
				return " "
			}},
			{head: "NAME", cell: func(c siteContext) string { return c.Name }},
			{head: "SITE", cell: func(c siteContext) string { return c.Site }},
			{head: "URL", cell: func(c siteContext) string { return c.URL }},
		},
		name: func(c siteContext) string { return c.Name },
		none: "no contexts yet; reservoir dev up or reservoir context add makes one",
	}
}

func (a *app) contextList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List contexts"}
	f := outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		c, err := loadContexts()
		if err != nil {
			return err
		}
		return a.contextListing(c.Current).print(a, *f, c.Contexts)
	}
	return cmd
}

func (a *app) contextShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show [NAME]", Short: "Show one context (the chosen one)", ValidArgsFunction: a.completeContexts}
	f := outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			a.context = args[0]
		}
		x, err := a.chosen()
		if err != nil {
			return err
		}
		c, err := loadContexts()
		if err != nil {
			return err
		}
		return a.contextListing(c.Current).printOne(a, *f, x)
	}
	return cmd
}

func (a *app) contextUse() *cobra.Command {
	return &cobra.Command{Use: "use NAME", Short: "Make a context the current one", ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := loadContexts()
			if err != nil {
				return err
			}
			if _, err := c.get(args[0]); err != nil {
				return err
			}
			c.Current = args[0]
			return c.save()
		}}
}

func (a *app) contextAdd() *cobra.Command {
	cmd := &cobra.Command{Use: "add NAME", Short: "Add a site, or change how it is reached",
		Long: `Add a site, or change how it is reached. A site writes what is needed for the first
time into its own directory: admin-token and ca.pem.`,
		Example: `  reservoir context add alpha --url https://10.0.0.5:8440 --ca-file ca.pem --token-file admin-token`}
	var x siteContext
	var caFile, tokenFile string
	var urls []string
	cmd.Flags().StringSliceVar(&urls, "url", nil, "where the site answers, https://HOST:PORT; of several members, all or some")
	cmd.Flags().StringVar(&x.Site, "site", "", "name of the site (as the context)")
	cmd.Flags().StringVar(&caFile, "ca-file", "", "certificate of the site's authority, PEM")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", `file with the API token, "-" is stdin`)
	for _, f := range []string{"url", "ca-file", "token-file"} {
		_ = cmd.MarkFlagRequired(f)
	}
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		x.Name = args[0]
		x.Site = cmp.Or(x.Site, x.Name)
		for _, at := range urls {
			if u, err := url.Parse(at); err != nil || u.Scheme != "https" || u.Host == "" {
				return fault.New(fault.Malformed, "--url %q: want https://HOST:PORT", at)
			}
		}
		if len(urls) == 0 {
			return fault.New(fault.Malformed, `--url "": want https://HOST:PORT`)
		}
		x.URL, x.Others = urls[0], urls[1:]
		ca, err := a.readFile(caFile)
		if err != nil {
			return err
		}
		token, err := a.readFile(tokenFile)
		if err != nil {
			return err
		}
		x.CA, x.Token = string(ca), strings.TrimSpace(string(token))
		if _, err := connect(x); err != nil { // are certificate and names well formed?
			return err
		}
		return addContext(x)
	}
	return cmd
}

func addContext(x siteContext) error {
	c, err := loadContexts()
	if err != nil {
		return err
	}
	c.put(x)
	return c.save()
}

func (a *app) contextRemove() *cobra.Command {
	return &cobra.Command{Use: "remove NAME", Aliases: []string{"rm"}, Short: "Forget a context", ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := loadContexts()
			if err != nil {
				return err
			}
			if _, err := c.get(args[0]); err != nil {
				return err
			}
			c.remove(func(x siteContext) bool { return x.Name == args[0] })
			return c.save()
		}}
}

func (a *app) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	c, err := loadContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, x := range c.Contexts {
		names = append(names, x.Name+"\t"+x.URL)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
