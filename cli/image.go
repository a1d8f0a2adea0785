package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/spf13/cobra"
)

func (a *app) image() *cobra.Command {
	parent := &cobra.Command{Use: "image", Short: "Brings the images of this release to a registry"}
	parent.AddCommand(a.imagePush())
	return parent
}

func (a *app) imagePush() *cobra.Command {
	var archives []string
	var insecure bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "push REGISTRY[/PATH]",
		Short: "Pushes the images of this release to a registry that the nodes can reach",
		Long: `Pushes each image of the archives as REGISTRY/PATH/IMAGE:TAG, for installations with
--set hub=REGISTRY/PATH. An image that archives of several architectures hold becomes one for all of
them. Credentials are those of docker login (~/.docker/config.json).`,
		Example: `  carrick image push registry.example.com/mesh
  carrick image push registry.example.com/mesh --archive amd64/images/carrick.tar --archive arm64/images/carrick.tar`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			hub := strings.TrimSuffix(args[0], "/")
			if strings.Contains(hub, "://") {
				return usagef("%s: a registry is named without a scheme: %s", hub, hub[strings.Index(hub, "://")+3:])
			}
			if len(archives) == 0 {
				var err error
				if archives, err = releaseArchives(); err != nil {
					return err
				}
			}
			images, err := imagesIn(archives)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return pushAll(ctx, cmd.OutOrStdout(), hub, images, insecure)
		},
	}
	cmd.Flags().StringArrayVar(&archives, "archive", nil, "image archive; repeat it for more (default those beside this program: ../images/carrick*.tar)")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "also by plain HTTP, and with a certificate that cannot be verified")
	cmd.Flags().DurationVar(&timeout, "timeout", 15*time.Minute, "how long all of it may take")
	return cmd
}

// releaseArchives finds the archives of the release that this program was unpacked with.
func releaseArchives() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding the archives beside this program: %w", err)
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	top := filepath.Dir(filepath.Dir(self))
	for _, dir := range []string{"images", "dist/images"} { // of a release; of the sources after make image
		found, err := filepath.Glob(filepath.Join(top, dir, "carrick*.tar"))
		if err != nil {
			return nil, fmt.Errorf("finding the archives in %s: %w", top, err)
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, fmt.Errorf("no image archive is in %s; name one with --archive", filepath.Join(top, "images"))
}

// imagesIn returns the images of archives by NAME:TAG, without registry and path; of several
// architectures several.
func imagesIn(archives []string) (map[string][]v1.Image, error) {
	out := map[string][]v1.Image{}
	for _, file := range archives {
		if _, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("image archive %w", err)
		}
		open := func() (io.ReadCloser, error) { return os.Open(file) }
		manifest, err := tarball.LoadManifest(open)
		if err != nil {
			return nil, fmt.Errorf("%s is not a whole image archive (docker save, or a release's): %w", file, err)
		}
		for _, d := range manifest {
			for _, t := range d.RepoTags {
				tag, err := name.NewTag(t)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", file, err)
				}
				img, err := tarball.Image(open, &tag)
				if err != nil {
					return nil, fmt.Errorf("%s: image %s: %w", file, t, err)
				}
				n := path.Base(tag.RepositoryStr()) + ":" + tag.TagStr()
				out[n] = append(out[n], img)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no image in it has a name", strings.Join(archives, ", "))
	}
	return out, nil
}

func pushAll(ctx context.Context, out io.Writer, hub string, images map[string][]v1.Image, insecure bool) error {
	var named []name.Option
	t := remote.DefaultTransport.(*http.Transport).Clone()
	if insecure {
		named = append(named, name.Insecure)
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	}
	tags := map[string]bool{}
	login := false
	for _, n := range slices.Sorted(maps.Keys(images)) {
		ref, err := name.NewTag(hub+"/"+n, named...)
		if err != nil {
			return usagef("registry %s: %v", hub, err)
		}
		auth, err := authn.Resolve(ctx, authn.DefaultKeychain, ref.Context())
		if err != nil {
			return fmt.Errorf("credentials for %s: %w", ref.RegistryStr(), err)
		}
		login = login || auth != authn.Anonymous
		pushed, err := artifactOf(images[n])
		if err != nil {
			return fmt.Errorf("image %s: %w", n, err)
		}
		rep, flush := reporter(out)
		err = push(ref, pushed, rep, remote.WithContext(ctx), remote.WithAuth(auth), remote.WithTransport(t), remote.WithUserAgent("carrick"))
		flush()
		if err != nil {
			return fmt.Errorf("pushing %s/%s: %w%s", hub, n, err, pushAdvice(ctx, err, ref, insecure))
		}
		rep.Done(fmt.Sprintf("%s/%s (%s), %s", hub, n, strings.Join(pushed.platforms, ", "), pushed.digest))
		tags[ref.TagStr()] = true
	}
	for _, tag := range slices.Sorted(maps.Keys(tags)) {
		fmt.Fprintf(out, "Next: carrick install --set hub=%s --set tag=%s\n", hub, tag)
	}
	if login {
		fmt.Fprintln(out, `If the nodes must log in, too: make a pull secret in istio-system and in each namespace with sidecars, and name it:
      kubectl -n istio-system create secret docker-registry NAME --docker-server=… --docker-username=… --docker-password=…
      carrick install … --set 'values.global.imagePullSecrets[0]=NAME'`)
	}
	return nil
}

// artifact is what one tag stands for: an image, or one for each platform.
type artifact struct {
	image     v1.Image
	index     v1.ImageIndex // if image is nil
	platforms []string
	digest    v1.Hash
}

// artifactOf joins images of several platforms.
func artifactOf(images []v1.Image) (artifact, error) {
	var a artifact
	var parts []mutate.IndexAddendum
	seen := map[string]v1.Hash{}
	for _, img := range images {
		config, err := img.ConfigFile()
		if err != nil {
			return a, fmt.Errorf("its archive is not whole: %w", err)
		}
		digest, err := img.Digest()
		if err != nil {
			return a, fmt.Errorf("its archive is not whole: %w", err)
		}
		platform := config.Platform()
		if before, ok := seen[platform.String()]; ok {
			if before != digest {
				return a, fmt.Errorf("two archives hold different images of it for %s; leave one out", platform)
			}
			continue
		}
		seen[platform.String()] = digest
		a.platforms = append(a.platforms, platform.String())
		a.image, a.digest = img, digest
		parts = append(parts, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	if len(parts) == 1 {
		return a, nil
	}
	a.image = nil
	a.index = mutate.IndexMediaType(mutate.AppendManifests(empty.Index, parts...), types.DockerManifestList)
	var err error
	a.digest, err = a.index.Digest()
	return a, err
}

// push writes an artifact to a registry and reports how far it has come, in tenths.
func push(ref name.Reference, a artifact, rep install.Reporter, opts ...remote.Option) error {
	updates := make(chan v1.Update, 16)
	done := make(chan error, 1)
	go func() {
		if a.image != nil {
			done <- remote.Write(ref, a.image, append(opts, remote.WithProgress(updates))...)
		} else {
			done <- remote.WriteIndex(ref, a.index, append(opts, remote.WithProgress(updates))...)
		}
	}()
	for u := range updates { // closed by the writer, when it ends
		if u.Total > 0 {
			rep.Progress(fmt.Sprintf("%s: %d %% of %.1f MB", ref, u.Complete*10/u.Total*10, float64(u.Total)/1e6))
		}
	}
	return <-done
}

// pushAdvice is what to do about an error of a registry, if that is known.
func pushAdvice(ctx context.Context, err error, ref name.Reference, insecure bool) string {
	var refused *transport.Error
	var unverified *tls.CertificateVerificationError
	registry := ref.Context().RegistryStr()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "; give more time with --timeout"
	case errors.As(err, &refused) && (refused.StatusCode == http.StatusUnauthorized || refused.StatusCode == http.StatusForbidden):
		return "; log in first (docker login " + registry + "), as someone who may write there"
	case insecure:
		return ""
	case errors.As(err, &unverified):
		return "; make this machine trust its CA, or give --insecure"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "; the registry speaks plain HTTP: give --insecure"
	}
	return ""
}
