package install

import (
	"fmt"
	"maps"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// isDefault is the condition of templates for the default revision.
const isDefault = `eq (.Values.revision | default "default") "default"`

func chartIstiod(version string, files map[string][]byte) error {
	for _, variant := range []struct{ file, revision, when string }{
		{"default", "", isDefault},
		{"revision", mark("revision"), "not (" + isDefault + ")"},
	} {
		text, err := istiodTemplate(version, variant.revision)
		if err != nil {
			return err
		}
		files["istiod/templates/"+variant.file+".yaml"] = []byte("{{- if " + variant.when + " }}\n" + text + "{{- end }}\n")
	}
	values, err := istiodValues(version)
	if err != nil {
		return err
	}
	files["istiod/values.yaml"] = values
	return nil
}

// istiodValues are the settings of profile minimal, with Istio's names beside whose default is none.
func istiodValues(version string) ([]byte, error) {
	c, err := Resolve(nil, []string{"profile=minimal"}, version)
	if err != nil {
		return nil, err
	}
	v := overlay(map[string]any{
		"global": map[string]any{
			"imagePullSecrets": []any{}, "meshNetworks": map[string]any{}, "priorityClassName": "", "trustDomain": "",
			"logging": map[string]any{"level": ""},
		},
		"pilot": map[string]any{
			"autoscaleEnabled": true, "autoscaleMin": 1, "autoscaleMax": 5, "replicaCount": 1, "env": map[string]any{},
			"nodeSelector": map[string]any{}, "tolerations": []any{}, "podAnnotations": map[string]any{},
		},
		"meshConfig":             map[string]any{},
		"sidecarInjectorWebhook": map[string]any{},
	}, overlay(c.injectorValues(), c.full))
	v["revision"] = ""
	delete(v["global"].(map[string]any), "istioNamespace") // the release's
	y, err := yaml.Marshal(v)
	return append([]byte("# Names and meanings are those of Istio's chart.\n"), y...), err
}

func istiodTemplate(version, revision string) (string, error) {
	t := &chart{lines: map[string]string{}, inline: map[string]string{
		mark("namespace"): ".Release.Namespace", mark("revision"): ".Values.revision",
		mark("hub"): `.Values.global.hub | trimSuffix "/"`, mark("tag"): ".Values.global.tag", mark("policy"): ".Values.global.imagePullPolicy",
		mark("mesh"): ".Values.global.meshID", mark("network"): ".Values.global.network",
		mark("cluster"): `.Values.global.multiCluster.clusterName | default "Kubernetes"`,
		mark("domain"):  `.Values.global.trustDomain | default "cluster.local"`,
	}}
	c, err := Resolve(nil, []string{
		"profile=empty", "components.pilot.enabled=true", "revision=" + revision, "namespace=" + mark("namespace"),
		"hub=" + mark("hub"), "tag=" + mark("tag"), "values.global.imagePullPolicy=" + mark("policy"), "values.global.trustDomain=" + mark("domain"),
		"values.global.meshID=" + mark("mesh"), "values.global.network=" + mark("network"), "values.global.multiCluster.clusterName=" + mark("cluster"),
		"values.global.defaultPodDisruptionBudget.enabled=true", "values.pilot.autoscaleEnabled=true", "values.sidecarInjectorWebhook.enableNamespacesByDefault=true",
	}, version)
	if err != nil {
		return "", err
	}
	m, err := c.Render()
	if err != nil {
		return "", err
	}
	when := map[string]string{
		"HorizontalPodAutoscaler": ".Values.pilot.autoscaleEnabled",
		"PodDisruptionBudget":     ".Values.global.defaultPodDisruptionBudget.enabled",
	}
	for _, o := range m.Objects() {
		if err := t.istiodObject(c, o); err != nil {
			return "", err
		}
	}
	return t.template(m.Objects(), func(o *unstructured.Unstructured) string { return when[o.GetKind()] })
}

// istiodObject marks what is more than a word in an object of the control plane.
func (t *chart) istiodObject(c *Config, o *unstructured.Unstructured) error {
	switch o.GetKind() {
	case "ServiceAccount":
		return t.hole(o, "imagePullSecrets", pullSecretsText(".Values.global.imagePullSecrets"))
	case "ConfigMap":
		if strings.HasPrefix(o.GetName(), "istio-sidecar-injector") {
			return t.injectorConfig(c, o)
		}
		return t.meshConfigMap(c, o)
	case "HorizontalPodAutoscaler":
		return t.autoscaler(o, ".Values.pilot.autoscaleMin | default 1", ".Values.pilot.autoscaleMax | default 5", "")
	case "MutatingWebhookConfiguration":
		hooks, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
		last := ""
		if suffix(c.Revision) == "" {
			last = ".Values.sidecarInjectorWebhook.enableNamespacesByDefault"
		}
		text, err := t.webhookText(hooks, last)
		if err != nil {
			return err
		}
		return t.hole(o, "webhooks", text)
	case "Deployment":
		env, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		list, _ := env[0].(map[string]any)["env"].([]any)
		text, err := t.envText(list, ".Values.pilot.env", 4)
		if err != nil {
			return err
		}
		return t.pods(o, map[string]string{
			"containers[0].env":  text,
			"containers[0].args": "‹in›‹key›:\n‹in›- discovery\n‹in›- --domain\n‹in›- {{ .Values.global.proxy.clusterDomain | default \"cluster.local\" }}\n{{- with .Values.global.logging.level }}\n‹in›- --log_output_level={{ . }}\n{{- end }}",
		}, ".Values.pilot", "not .Values.pilot.autoscaleEnabled", ".Values.pilot.replicaCount")
	}
	return nil
}

// pods marks what charts let users say of a Deployment's pods; values is where they say it.
func (t *chart) pods(o *unstructured.Unstructured, more map[string]string, values, fixed, replicas string) error {
	annotations, _, _ := unstructured.NestedMap(o.Object, "spec", "template", "metadata", "annotations")
	if err := t.hole(o, "spec.replicas", "{{- if "+fixed+" }}\n‹in›‹key›: {{ "+replicas+" }}\n{{- end }}"); err != nil {
		return err
	}
	if err := t.hole(o, "spec.template.metadata.annotations", "‹in›‹key›:\n{{ toYaml (mergeOverwrite "+t.expr(annotations)+" ("+values+".podAnnotations | default dict)) | indent 8 }}"); err != nil {
		return err
	}
	pull, class := ".Values.global.imagePullSecrets", ".Values.global.priorityClassName"
	if values == ".Values" {
		pull, class = ".Values.imagePullSecrets", ".Values.priorityClassName"
	}
	holes := map[string]string{
		"imagePullSecrets":        pullSecretsText(pull),
		"nodeSelector":            block(values+".nodeSelector", 4),
		"tolerations":             block(values+".tolerations", 4),
		"affinity":                block(values+".affinity", 4),
		"priorityClassName":       "{{- with " + class + " }}\n‹in›‹key›: {{ . }}\n{{- end }}",
		"containers[0].resources": block(values+".resources", 5),
	}
	maps.Copy(holes, more)
	for path, text := range holes {
		if err := t.hole(o, "spec.template.spec."+path, text); err != nil {
			return err
		}
	}
	return nil
}

// autoscaler marks the bounds of a HorizontalPodAutoscaler; cpu may be "".
func (t *chart) autoscaler(o *unstructured.Unstructured, lo, hi, cpu string) error {
	err := t.hole(o, "spec.minReplicas", "‹in›‹key›: {{ "+lo+" }}")
	if err == nil {
		err = t.hole(o, "spec.maxReplicas", "‹in›‹key›: {{ max ("+hi+") ("+lo+") }}")
	}
	if err == nil && cpu != "" {
		err = t.hole(o, "spec.targetCPUUtilizationPercentage", "‹in›‹key›: {{ "+cpu+" }}")
	}
	return err
}

// meshConfigMap writes ConfigMap istio: what is rendered, with the user's meshConfig laid over it.
func (t *chart) meshConfigMap(c *Config, o *unstructured.Unstructured) error {
	mesh, err := c.meshValues()
	if err != nil {
		return err
	}
	err = t.hole(o, "data.mesh", "{{- $mesh := "+t.expr(mesh)+" }}\n{{- if not .Values.global.meshID }}{{ $_ := unset $mesh.defaultConfig \"meshId\" }}{{ end }}\n"+
		"‹in›‹key›: |\n{{ toYaml (mergeOverwrite $mesh (.Values.meshConfig | default dict)) | indent 4 }}")
	if err != nil {
		return err
	}
	return t.hole(o, "data.meshNetworks", "‹in›‹key›: |\n{{ toYaml (dict \"networks\" (.Values.global.meshNetworks | default dict)) | indent 4 }}")
}

// injectorConfig writes ConfigMap istio-sidecar-injector: what is rendered, under the chart's values.
func (t *chart) injectorConfig(c *Config, o *unstructured.Unstructured) error {
	values, err := jsonTree(c.injectorValues())
	if err != nil {
		return err
	}
	delete(values.(map[string]any), "sidecarInjectorWebhook") // was set for the sake of the webhooks
	err = t.hole(o, "data.values", "{{- $v := omit (deepCopy (.Values | toYaml | fromYaml)) \"pilot\" \"gateways\" \"meshConfig\" }}\n"+
		"{{- $_ := set $v \"global\" (omit $v.global \"hub\" \"tag\" \"istioNamespace\" \"defaultPodDisruptionBudget\") }}\n"+
		"‹in›‹key›: |\n{{ toPrettyJson (mergeOverwrite "+t.expr(values)+" $v) | indent 4 }}")
	if err != nil {
		return err
	}
	var config map[string]any
	data, _, _ := unstructured.NestedString(o.Object, "data", "config")
	if err := yaml.Unmarshal([]byte(data), &config); err != nil {
		return err
	}
	text := "{{- $w := .Values.sidecarInjectorWebhook }}\n{{- $c := " + t.expr(config) + " }}\n"
	for _, k := range []string{"alwaysInjectSelector", "neverInjectSelector", "injectedAnnotations"} {
		text += fmt.Sprintf("{{- with $w.%s }}{{ $_ := set $c %[1]q . }}{{ end }}\n", k)
	}
	return t.hole(o, "data.config", text+"‹in›‹key›: |\n{{ toYaml $c | indent 4 }}")
}

func chartGateway(version string, files map[string][]byte) error {
	for _, revisioned := range []bool{false, true} {
		for _, networked := range []bool{false, true} {
			text, err := gatewayTemplate(version, revisioned, networked)
			if err != nil {
				return err
			}
			file, when := "gateway", "("+isDefault+")"
			if revisioned {
				file, when = file+"-revision", "(not ("+isDefault+"))"
			}
			if networked {
				file, when = file+"-network", when+" .Values.networkGateway"
			} else {
				when += " (not .Values.networkGateway)"
			}
			files["gateway/templates/"+file+".yaml"] = []byte("{{- if and " + when + " }}\n" + text + "{{- end }}\n")
		}
	}
	files["gateway/values.yaml"] = []byte(`# Names and meanings are those of Istio's chart.
name: "" # default the release's
revision: ""
networkGateway: "" # the network whose east-west gateway this is
imagePullPolicy: IfNotPresent
imagePullSecrets: []
priorityClassName: ""
replicaCount: 1
autoscaling: {enabled: true, minReplicas: 1, maxReplicas: 5, targetCPUUtilizationPercentage: 80}
podDisruptionBudget: {} # minAvailable or maxUnavailable; none if empty
service:
  type: LoadBalancer
  loadBalancerIP: ""
  loadBalancerSourceRanges: []
  externalTrafficPolicy: ""
  annotations: {}
  ports: [] # default 15021, 80 and 443; with networkGateway 15021, 15443, 15012 and 15017
env: {}
podAnnotations: {}
nodeSelector: {}
tolerations: []
affinity: {}
resources:
  requests: {cpu: 100m, memory: 128Mi}
  limits: {cpu: "2", memory: 1Gi}
`)
	return nil
}

func gatewayTemplate(version string, revisioned, networked bool) (string, error) {
	const name = `(.Values.name | default .Release.Name)`
	t := &chart{lines: map[string]string{}, inline: map[string]string{
		mark("namespace"): ".Release.Namespace", mark("revision"): ".Values.revision", mark("name"): name, mark("istio"): name + ` | trimPrefix "istio-"`,
		mark("network"): ".Values.networkGateway", mark("policy"): ".Values.imagePullPolicy", mark("tag"): ".Chart.AppVersion",
	}}
	g := map[string]any{"name": mark("name"), "enabled": true, "label": map[string]any{"app": mark("name"), "istio": mark("istio")}, "k8s": map[string]any{
		"hpaSpec": map[string]any{"minReplicas": int64(1), "maxReplicas": int64(5)}, "podDisruptionBudget": map[string]any{},
	}}
	if networked {
		g["label"].(map[string]any)["topology.istio.io/network"] = mark("network")
		g["k8s"].(map[string]any)["env"] = []any{map[string]any{"name": "ISTIO_META_REQUESTED_NETWORK_VIEW", "value": mark("network")}}
		g["k8s"].(map[string]any)["service"] = map[string]any{"ports": []any{
			gatewayPort("status-port", 15021), gatewayPort("tls", 15443), gatewayPort("tls-istiod", 15012), gatewayPort("tls-webhook", 15017),
		}}
	}
	spec := map[string]any{"profile": "empty", "namespace": mark("namespace"), "tag": mark("tag"),
		"values":     map[string]any{"global": map[string]any{"imagePullPolicy": mark("policy")}},
		"components": map[string]any{"ingressGateways": []any{g}}}
	if revisioned {
		spec["revision"] = mark("revision")
	}
	c, err := Resolve([]map[string]any{{"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator", "metadata": map[string]any{"name": mark("name")}, "spec": spec}}, nil, version)
	if err != nil {
		return "", err
	}
	m, err := c.Render()
	if err != nil {
		return "", err
	}
	for _, o := range m.Objects() {
		if err := t.gatewayObject(o); err != nil {
			return "", err
		}
	}
	when := map[string]string{"HorizontalPodAutoscaler": ".Values.autoscaling.enabled", "PodDisruptionBudget": ".Values.podDisruptionBudget"}
	return t.template(m.Objects(), func(o *unstructured.Unstructured) string { return when[o.GetKind()] })
}

func gatewayPort(name string, n int64) map[string]any {
	return map[string]any{"name": name, "port": n, "targetPort": n, "protocol": "TCP"}
}

func (t *chart) gatewayObject(o *unstructured.Unstructured) error {
	switch o.GetKind() {
	case "ServiceAccount":
		return t.hole(o, "imagePullSecrets", pullSecretsText(".Values.imagePullSecrets"))
	case "HorizontalPodAutoscaler":
		return t.autoscaler(o, ".Values.autoscaling.minReplicas", ".Values.autoscaling.maxReplicas", ".Values.autoscaling.targetCPUUtilizationPercentage")
	case "PodDisruptionBudget":
		sel, _, _ := unstructured.NestedMap(o.Object, "spec", "selector")
		return t.hole(o, "spec", "‹in›‹key›:\n{{ toYaml (mergeOverwrite (dict \"selector\" "+t.expr(sel)+") (deepCopy .Values.podDisruptionBudget)) | indent 2 }}")
	case "Service":
		ports, _, _ := unstructured.NestedSlice(o.Object, "spec", "ports")
		holes := map[string]string{
			"metadata.annotations":          block(".Values.service.annotations", 2),
			"spec.ports":                    "‹in›‹key›:\n{{ toYaml (.Values.service.ports | default " + t.expr(ports) + ") | indent 2 }}",
			"spec.type":                     "‹in›‹key›: {{ .Values.service.type }}",
			"spec.loadBalancerSourceRanges": block(".Values.service.loadBalancerSourceRanges", 2),
			"spec.loadBalancerIP":           "{{- with .Values.service.loadBalancerIP }}\n‹in›‹key›: {{ . }}\n{{- end }}",
			"spec.externalTrafficPolicy":    "{{- with .Values.service.externalTrafficPolicy }}\n‹in›‹key›: {{ . }}\n{{- end }}",
		}
		for path, text := range holes {
			if err := t.hole(o, path, text); err != nil {
				return err
			}
		}
	case "Deployment":
		containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		env, _ := containers[0].(map[string]any)["env"].([]any)
		text, err := t.envText(env, ".Values.env", 4)
		if err != nil {
			return err
		}
		if len(env) == 0 {
			text = strings.Replace(text, "‹in›‹key›:\n", "{{- if $env }}\n‹in›‹key›:\n{{- end }}\n", 1)
		}
		return t.pods(o, map[string]string{"containers[0].env": text}, ".Values", "not .Values.autoscaling.enabled", ".Values.replicaCount")
	}
	return nil
}
