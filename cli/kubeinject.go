package cli

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/carrick-mesh/carrick/inject"
	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	meshv1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// maxManifest bounds a manifest that is injected, in bytes.
const maxManifest = 64 << 20

func (a *app) kubeInject() *cobra.Command {
	var file, output, meshFile, valuesFile, configFile, revision string
	var native bool
	cmd := &cobra.Command{
		Use:   "kube-inject",
		Short: "Adds sidecars to a manifest, where no webhook does",
		Long: `Adds sidecars to the pod templates of a manifest, with the settings of the control plane that runs in
the cluster, or offline with those of --meshConfigFile and --valuesFile.`,
		Example: `  carrick kube-inject --context=cluster1 -f sleep.yaml | kubectl apply -f -`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("-f FILE is missing (- is standard input)")
			}
			in, err := readFile(cmd, file, maxManifest)
			if err != nil {
				return err
			}
			p, err := a.injectParams(cmd, meshFile, valuesFile, configFile, revision, native)
			if err != nil {
				return err
			}
			var out bytes.Buffer
			err = inject.Manifest(bytes.NewReader(in), &out, p, func(w string) { fmt.Fprintln(cmd.ErrOrStderr(), "Note: "+w) })
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if output != "" && output != "-" {
				return writeFile(output, out.Bytes(), 0o644)
			}
			_, err = cmd.OutOrStdout().Write(out.Bytes())
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "manifest; - is standard input")
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write (default standard output)")
	cmd.Flags().StringVar(&meshFile, "meshConfigFile", "", "MeshConfig, instead of ConfigMap istio")
	cmd.Flags().StringVar(&valuesFile, "valuesFile", "", "values, instead of ConfigMap istio-sidecar-injector")
	cmd.Flags().StringVar(&configFile, "injectConfigFile", "", "templates and selectors, instead of key config of ConfigMap istio-sidecar-injector")
	cmd.Flags().StringVarP(&revision, "revision", "r", "", "revision of the control plane")
	cmd.Flags().BoolVar(&native, "native-sidecar", false, "offline: the cluster supports native sidecars")
	return cmd
}

// injectParams reads the settings of injection from files, or from the cluster where a file is
// not given.
func (a *app) injectParams(cmd *cobra.Command, meshFile, valuesFile, configFile, revision string, native bool) (p inject.Params, err error) {
	var mesh, values, config []byte
	if meshFile != "" {
		if mesh, err = readFile(cmd, meshFile, install.MaxFile); err != nil {
			return p, err
		}
	}
	if valuesFile != "" {
		if values, err = readFile(cmd, valuesFile, install.MaxFile); err != nil {
			return p, err
		}
	}
	if configFile != "" {
		if config, err = readFile(cmd, configFile, install.MaxFile); err != nil {
			return p, err
		}
	}
	if meshFile == "" || valuesFile == "" {
		c, err := a.target.connect(cmd)
		if err != nil {
			return p, fmt.Errorf("%w; or work offline with --meshConfigFile and --valuesFile", err)
		}
		suffix := ""
		if revision != "" && revision != "default" {
			suffix = "-" + revision
		}
		get := func(name string) (*corev1.ConfigMap, error) {
			cm, err := c.Kube.CoreV1().ConfigMaps(a.target.istioNamespace).Get(cmd.Context(), name+suffix, metav1.GetOptions{})
			if err != nil {
				return nil, c.wrong(fmt.Errorf("reading the control plane's settings: %w", err))
			}
			return cm, nil
		}
		if meshFile == "" {
			cm, err := get("istio")
			if err != nil {
				return p, err
			}
			mesh = []byte(cm.Data["mesh"])
		}
		if valuesFile == "" {
			cm, err := get("istio-sidecar-injector")
			if err != nil {
				return p, err
			}
			values = []byte(cm.Data["values"])
			if configFile == "" {
				config = []byte(cm.Data["config"])
			}
		}
		if v, err := c.Kube.Discovery().ServerVersion(); err == nil {
			native = minorOf(v.Minor) >= 29
		}
	}
	mc := &meshv1.MeshConfig{}
	j, err := yaml.YAMLToJSON(mesh)
	if err == nil && len(mesh) > 0 {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(j, mc)
	}
	if err != nil {
		return p, fmt.Errorf("the MeshConfig is not understood: %w", err)
	}
	if j, err = yaml.YAMLToJSON(values); err != nil || !json.Valid(j) {
		return p, fmt.Errorf("the values are not understood: %w", err)
	}
	if p, err = inject.NewParams(mc, j, native); err != nil {
		return p, err
	}
	return p.WithConfig(config)
}
