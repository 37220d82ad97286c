package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/image/build"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
)

func (a *app) imageCmd() *cobra.Command {
	return noun("image", "What VEEs boot from", a.imagePush(), a.imageList(), a.imageShow(), a.imageRemove(), a.imageBuild())
}

func (r *remote) images() image.Remote {
	return image.Remote{Base: r.http.Base, HTTP: r.http.HTTP, Token: r.http.Token}
}

func (a *app) imageListing(at map[string][]string) listing[image.Info] {
	return listing[image.Info]{
		columns: []column[image.Info]{
			{head: "NAME", cell: func(i image.Info) string { return i.Name }},
			{head: "TAG", cell: func(i image.Info) string { return i.Tag }},
			{head: "DIGEST", cell: func(i image.Info) string { return short(i.Digest) }},
			{head: "SIZE", cell: func(i image.Info) string { return i.Size.String() }},
			{head: "BOOTS", cell: func(i image.Info) string { return i.Boot }},
			{head: "AGE", cell: func(i image.Info) string { return a.since(i.Created) }},
			{head: "USED-BY", cell: func(i image.Info) string {
				if i.Problem != "" {
					return "cannot be used: " + i.Problem
				}
				return strings.Join(i.UsedBy, " ")
			}},
			{head: "CUSTOMER", cell: func(i image.Info) string { return i.Customer }, wide: true},
			{head: "DISK", cell: func(i image.Info) string {
				if i.VirtualSize == 0 {
					return ""
				}
				return i.VirtualSize.String() + " " + i.Format
			}, wide: true},
			{head: "LEAST-MEMORY", cell: func(i image.Info) string {
				if i.MinMemory == 0 {
					return ""
				}
				return i.MinMemory.String()
			}, wide: true},
			{head: "ARCH", cell: func(i image.Info) string { return i.Arch }, wide: true},
			{head: "ALSO-AT", cell: func(i image.Info) string { return elsewhere(at, i.Digest) }, wide: true},
		},
		name: func(i image.Info) string {
			if i.Name == "" {
				return i.Digest
			}
			return i.Name + ":" + i.Tag
		},
		none: "no images; push one: reservoir image push .cache/images/appliance",
	}
}

func (a *app) imageList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the images of the site"}
	f, watch := outputFlag(cmd), watchFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		if *watch {
			return showWatch(ctx, a, a.imageListing(nil), *f, poll(r.images().List))
		}
		list, err := r.images().List(ctx)
		if err != nil {
			return err
		}
		return a.imageListing(a.imagesElsewhere(ctx, r, *f)).print(a, *f, list)
	})
	return cmd
}

// imagesElsewhere are the partners that have images ahead, where that is shown. It is the
// operator's affair: nobody else is told, and for him too the images are what matters.
func (a *app) imagesElsewhere(ctx context.Context, r *remote, f format) map[string][]string {
	if f != "wide" {
		return nil
	}
	at, err := r.cooperation.ImagesElsewhere(ctx)
	if err != nil {
		return nil
	}
	return at
}

func (a *app) imageShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show IMAGE", Short: "Show one image: NAME, NAME:TAG or sha256:…", ValidArgsFunction: a.names(imageNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		i, err := r.images().Show(ctx, args[0])
		if err != nil {
			return err
		}
		if *f == "table" {
			*f = "wide"
			a.printf("%s\n", i.Digest)
		}
		return a.imageListing(a.imagesElsewhere(ctx, r, *f)).printOne(a, *f, i)
	})
	return cmd
}

func (a *app) imageRemove() *cobra.Command {
	cmd := &cobra.Command{Use: "remove IMAGE…", Aliases: []string{"rm"}, Short: "Remove images that nothing uses", ValidArgsFunction: a.names(imageNames)}
	force := cmd.Flags().Bool("force", false, "also where a VEE was made of it")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		for _, ref := range args {
			if err := r.images().Remove(ctx, ref, *force); err != nil {
				return err
			}
		}
		return nil
	})
	return cmd
}

func (a *app) imagePush() *cobra.Command {
	cmd := &cobra.Command{Use: "push SOURCE [NAME[:TAG]]", Short: "Push an image to the site",
		Long: `Push an image to the site. SOURCE is a directory that "image build" made (an OCI layout),
or a disk in a qcow2 or raw file. What the site has already is not sent again.`,
		Example: `  reservoir image push .cache/images/appliance
  reservoir image push disk.qcow2 shop/db:2024-06
  reservoir image push --from-vee db-1 root shop/db:patched`}
	var files image.Files
	cmd.Flags().StringVar(&files.Kernel, "kernel", "", "with a disk: boot this kernel directly")
	cmd.Flags().StringVar(&files.Initrd, "initrd", "", "with --kernel: its initial RAM file system")
	cmd.Flags().StringVar(&files.Config.Cmdline, "cmdline", "", "with --kernel: its command line")
	fromVEE := cmd.Flags().String("from-vee", "", "push a disk of this VEE, which must be stopped; SOURCE is the disk's name")
	snapshot := cmd.Flags().String("snapshot", "", "with --from-vee: the disk as this snapshot has it")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		files.Disk = args[0]
		if *fromVEE != "" {
			file, drop, err := r.borrowDisk(ctx, *fromVEE, args[0], *snapshot)
			if err != nil {
				return err
			}
			defer drop()
			files.Disk = file
		}
		src, err := openSource(ctx, files)
		if err != nil {
			return err
		}
		ref := src.Image().Config.Name
		if len(args) > 1 {
			ref = args[1]
		}
		if _, err := a.push(ctx, r, src, ref); err != nil {
			return err
		}
		info, err := r.images().Show(ctx, ref)
		if err != nil {
			return err
		}
		return a.imageListing(nil).printOne(a, *f, info)
	})
	return cmd
}

// openSource opens an OCI layout's directory, or makes an image of files.
func openSource(ctx context.Context, files image.Files) (*image.Source, error) {
	info, err := os.Stat(files.Disk)
	if err != nil {
		return nil, fileFault(err)
	}
	if info.IsDir() {
		return image.FromLayout(files.Disk, "")
	}
	return image.FromFiles(ctx, files)
}

// push shows how it gets on, on stderr, and answers with the digest.
func (a *app) push(ctx context.Context, r *remote, src *image.Source, ref string) (string, error) {
	screen := newScreen(a.err)
	return r.images().Push(ctx, src, ref, func(p vee.Progress) {
		screen.show([]line{{key: ref, text: "push " + ref, detail: progress(&vee.Progress{Done: p.Done, Total: p.Total, Unit: p.Unit})}})
	})
}

func imageNames(ctx context.Context, r *remote, _ []string) ([]string, error) {
	list, err := r.images().List(ctx)
	var names []string
	for _, i := range list {
		names = append(names, cmp.Or(i.Name+":"+i.Tag, i.Digest)+"\t"+i.Size.String())
	}
	return names, err
}

// recipes of the images that can be built.
var recipes = map[string]func(context.Context, build.Options) (build.Artifact, error){
	"appliance": build.Appliance,
	"debian":    build.Debian,
}

func (a *app) imageBuild() *cobra.Command {
	cmd := &cobra.Command{Use: "build NAME", Short: "Build an image: appliance or debian", ValidArgs: []string{"appliance", "debian"},
		Long: `Build an image of Debian's packages, from this machine's apt sources, and leave it in
OUT/NAME. What has not changed is not built again.

  appliance   Debian's cloud kernel with our static guest as init: boots in seconds,
              answers HTTP on port 80, publishes KPIs, can be told to burn CPU
  debian      Debian with cloud-init, and with the packages that --with names`,
		Example: "  reservoir image build appliance\n  reservoir image build debian --with postgresql --name debian-postgresql"}
	o := build.Options{Progress: a.err}
	cmd.Flags().StringVar(&o.Out, "out", ".cache/images", "directory that gets the image")
	cmd.Flags().StringVar(&o.Cache, "cache", ".cache/build", "directory for downloads")
	cmd.Flags().StringVar(&o.GuestBinary, "guest", "", "static build of cmd/reservoir-guest (built from the source tree)")
	cmd.Flags().StringVar(&o.Name, "name", "", "of the image (the recipe's)")
	cmd.Flags().StringSliceVar(&o.Packages, "with", nil, "Debian `PACKAGES` to install as well")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if args[0] != "debian" && (o.Name != "" || len(o.Packages) > 0) {
			return fault.New(fault.Malformed, "--name and --with are of image debian alone")
		}
		recipe, ok := recipes[args[0]]
		if !ok {
			return fault.New(fault.Malformed, "there is no recipe for image %q: want appliance or debian", args[0])
		}
		made, err := recipe(cmd.Context(), o)
		if err != nil {
			return err
		}
		what := "built"
		if made.Kept {
			what = "up to date"
		}
		fmt.Fprintln(a.out, made.Layout)
		fmt.Fprintf(a.err, "%s %s: %s, %s\n", args[0], what, made.Image.Size(), short(made.Image.Digest))
		return nil
	}
	return cmd
}
