package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/carrick-mesh/carrick/install"
)

// operatorFlags is what install, manifest and eastwest take to say what to install.
type operatorFlags struct {
	files     []string
	sets      []string
	revision  string
	manifests string
}

func (o *operatorFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVarP(&o.files, "filename", "f", nil, "IstioOperator file; - is standard input; later ones win")
	cmd.Flags().StringArrayVarP(&o.sets, "set", "s", nil, "PATH=VALUE of the IstioOperator's spec: profile=demo, values.global.network=network1")
	cmd.Flags().StringVarP(&o.revision, "revision", "r", "", "revision of the control plane")
	cmd.Flags().StringVarP(&o.manifests, "manifests", "d", "", "accepted for istioctl's sake; all is built in")
}

func (o *operatorFlags) resolve(cmd *cobra.Command, version string) (*install.Config, error) {
	var docs []map[string]any
	for _, f := range o.files {
		b, err := readFile(cmd, f, install.MaxFile)
		if err != nil {
			return nil, err
		}
		d, err := install.Parse(f, b)
		if err != nil {
			return nil, err
		}
		docs = append(docs, d...)
	}
	sets := o.sets
	if o.revision != "" {
		sets = append(sets, "revision="+o.revision)
	}
	cfg, err := install.Resolve(docs, sets, version)
	if err != nil {
		return nil, err
	}
	warnUnused(cmd.ErrOrStderr(), cfg)
	return cfg, nil
}

// warnUnused tells of the fields that a file sets and that have no effect.
func warnUnused(w io.Writer, cfg *install.Config) {
	for _, u := range cfg.Ignored {
		fmt.Fprintf(w, "! spec.%s\n", u)
	}
}
