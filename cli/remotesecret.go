package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"
)

type remoteSecretFlags struct {
	name, server, tlsServerName, secretName, account string
	authType, kind, pluginName                       string
	pluginConfig                                     map[string]string
	createAccount                                    bool
	manifests                                        string
}

func (a *app) createRemoteSecret() *cobra.Command {
	var f remoteSecretFlags
	cmd := &cobra.Command{
		Use:   "create-remote-secret",
		Short: "Prints a Secret by which another cluster's control plane reads this cluster",
		Long: `Prints a Secret that holds a kubeconfig for this cluster, limited to reading what a mesh needs to know.
Apply it to each other cluster of the mesh.`,
		Example: `  carrick create-remote-secret --context=cluster1 --name=cluster1 | kubectl apply --context=cluster2 -f -`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			out, err := f.make(cmd, c, a.target.istioNamespace)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
	cmd.Flags().StringVar(&f.name, "name", "", "name of this cluster in the mesh (values.global.multiCluster.clusterName); default the UID of namespace kube-system")
	cmd.Flags().StringVar(&f.server, "server", "", "address of this cluster's API server as the other clusters reach it")
	cmd.Flags().StringVar(&f.tlsServerName, "tls-server-name", "", "name to check the API server's certificate for")
	cmd.Flags().StringVar(&f.secretName, "secret-name", "", "Secret of the service account whose token to take")
	cmd.Flags().StringVar(&f.account, "service-account", install.ReaderServiceAccount, "service account that the other cluster acts as")
	cmd.Flags().BoolVar(&f.createAccount, "create-service-account", true, "make the service account and its role if they are not there")
	cmd.Flags().StringVar(&f.authType, "auth-type", "bearer-token", "bearer-token")
	cmd.Flags().StringVar(&f.pluginName, "auth-plugin-name", "", "accepted for istioctl's sake")
	cmd.Flags().StringToStringVar(&f.pluginConfig, "auth-plugin-config", nil, "accepted for istioctl's sake")
	cmd.Flags().StringVar(&f.kind, "type", "remote", "remote, or config for a Secret istio-kubeconfig")
	cmd.Flags().StringVarP(&f.manifests, "manifests", "d", "", "accepted for istioctl's sake")
	return cmd
}

func (f *remoteSecretFlags) make(cmd *cobra.Command, c *cluster, namespace string) ([]byte, error) {
	ctx := cmd.Context()
	if f.authType != "bearer-token" {
		return nil, usagef("--auth-type %s: control planes run no commands and no plugins from Secrets; use bearer-token", f.authType)
	}
	if f.kind != "remote" && f.kind != "config" {
		return nil, usagef("--type %s: is not remote or config", f.kind)
	}
	name := f.name
	if name == "" {
		ns, err := c.Kube.CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
		if err != nil {
			return nil, c.wrong(fmt.Errorf("naming the cluster by the UID of namespace kube-system: %w", err))
		}
		name = string(ns.UID)
	}
	if err := f.checkNames(name, namespace); err != nil {
		return nil, err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Reading %s\n", c)
	server, err := f.address(cmd, c)
	if err != nil {
		return nil, err
	}
	token, err := f.token(ctx, c, namespace)
	if err != nil {
		return nil, c.wrong(err)
	}
	endpoint, err := f.endpoint(cmd, c, server, token)
	if err != nil {
		return nil, err
	}
	return encodeRemoteSecret(name, namespace, f.kind, endpoint, token)
}

// checkNames refuses names that Kubernetes would refuse in what is printed. A cluster's name is a DNS
// label, as istioctl has it: it becomes a part of the Secret's name.
func (f *remoteSecretFlags) checkNames(name, namespace string) error {
	if bad := validation.IsDNS1123Label(name); len(bad) > 0 {
		return usagef("--name %q: a cluster's name in the mesh is a DNS label: lower-case letters, digits and -, at most 63 (%s)", name, bad[0])
	}
	if bad := validation.IsDNS1123Label(namespace); len(bad) > 0 {
		return usagef("--istioNamespace %q: is not the name of a namespace: %s", namespace, bad[0])
	}
	if bad := validation.IsDNS1123Subdomain(f.account); len(bad) > 0 {
		return usagef("--service-account %q: is not the name of a ServiceAccount: %s", f.account, bad[0])
	}
	if f.secretName == "" {
		return nil
	}
	if bad := validation.IsDNS1123Subdomain(f.secretName); len(bad) > 0 {
		return usagef("--secret-name %q: is not the name of a Secret: %s", f.secretName, bad[0])
	}
	return nil
}

// encodeRemoteSecret renders the Secret in istioctl's form, to the byte.
func encodeRemoteSecret(name, namespace, kind string, endpoint *clientcmdapi.Cluster, token *corev1.Secret) ([]byte, error) {
	cfg := clientcmdapi.Config{
		Kind:           "Config",
		APIVersion:     "v1",
		Clusters:       map[string]*clientcmdapi.Cluster{name: endpoint},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {Token: string(token.Data["token"])}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	}
	kubeconfig, err := clientcmd.Write(cfg)
	if err != nil {
		return nil, fmt.Errorf("encoding the kubeconfig: %w", err)
	}
	secretName, key := "istio-remote-secret-"+name, name
	if kind == "config" {
		secretName, key = "istio-kubeconfig", "config"
	}
	secret := map[string]any{
		"apiVersion": "v1",
		"kind":       "Secret",
		"metadata": map[string]any{
			"annotations": map[string]any{"networking.istio.io/cluster": name},
			"labels":      map[string]any{"istio/multiCluster": "true"},
			"name":        secretName,
			"namespace":   namespace,
		},
		"stringData": map[string]any{key: string(kubeconfig)},
	}
	y, err := yaml.Marshal(secret)
	if err != nil {
		return nil, fmt.Errorf("encoding the Secret: %w", err)
	}
	return []byte("# This file is autogenerated, do not edit.\n" + string(y) + "---\n"), nil
}

// token returns the Secret that holds the service account's token, and makes both if need be:
// from Kubernetes 1.24 on, service accounts have none by themselves.
func (f *remoteSecretFlags) token(ctx context.Context, c *cluster, namespace string) (*corev1.Secret, error) {
	_, err := c.Kube.CoreV1().ServiceAccounts(namespace).Get(ctx, f.account, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if !f.createAccount || f.account != install.ReaderServiceAccount {
			return nil, fmt.Errorf("there is no ServiceAccount %s in namespace %s; install the control plane first, or give --create-service-account", f.account, namespace)
		}
		if err := c.ApplyReader(ctx, namespace); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("reading ServiceAccount %s: %w", f.account, err)
	}
	name := f.secretName
	if name == "" {
		name = f.account + "-istio-remote-secret-token"
	}
	secrets := c.Kube.CoreV1().Secrets(namespace)
	if _, err := secrets.Get(ctx, name, metav1.GetOptions{}); apierrors.IsNotFound(err) && f.secretName == "" {
		_, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: f.account}, Labels: map[string]string{install.ManagedBy: "carrick"}},
			Type:       corev1.SecretTypeServiceAccountToken,
		}, metav1.CreateOptions{FieldManager: install.Manager})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("making Secret %s: %w", name, err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("reading Secret %s: %w", name, err)
	}
	// The controller manager fills the Secret in.
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := secrets.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("reading Secret %s: %w", name, err)
		}
		if len(s.Data["token"]) > 0 && len(s.Data["ca.crt"]) > 0 {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("secret %s/%s of ServiceAccount %s got no token within 20s; is the controller manager running?", namespace, name, f.account)
		case <-tick.C:
		}
	}
}
