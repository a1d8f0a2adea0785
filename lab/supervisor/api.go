package supervisor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/carrick-mesh/carrick/lab/connect"
	"github.com/carrick-mesh/carrick/lab/state"
	"github.com/carrick-mesh/carrick/lab/topo"
)

// api reads from one API server.
type api struct {
	base   string
	client *http.Client
}

func newAPI(lab state.Lab, c *topo.Cluster, dial connect.Dial) (*api, error) {
	files := func(name string) string { return lab.Node(c.Nodes[0].Name, "pki", name) }
	cert, err := tls.LoadX509KeyPair(files("admin.crt"), files("admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := readAll(files("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca[0])
	return &api{c.Server(), &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext:     dial,
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots},
	}}}, nil
}

// get reads a path, as JSON into a value unless that is nil.
func (a *api) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return err
	}
	r, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 16<<20))
	if err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %.200s", path, r.Status, b)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}

// readyNodes returns the names of the nodes that are Ready.
func (a *api) readyNodes(ctx context.Context) (map[string]bool, error) {
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := a.get(ctx, "/api/v1/nodes", &list); err != nil {
		return nil, err
	}
	ready := map[string]bool{}
	for _, n := range list.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				ready[n.Metadata.Name] = true
			}
		}
	}
	return ready, nil
}

// available reports an error unless a deployment has a ready pod.
func (a *api) available(ctx context.Context, namespace, name string) error {
	var d struct {
		Status struct{ AvailableReplicas int }
	}
	if err := a.get(ctx, "/apis/apps/v1/namespaces/"+namespace+"/deployments/"+name, &d); err != nil {
		return err
	}
	if d.Status.AvailableReplicas < 1 {
		return errors.New("no pod of it is available")
	}
	return nil
}

// writeKubeconfig writes the users' kubeconfig. Servers are named by their
// addresses on the LAN, so that what is copied from it is true there too; the
// proxy is how the machine reaches them.
func (s *Supervisor) writeKubeconfig() error {
	var clusters, users, contexts strings.Builder
	for _, c := range s.Topology.Clusters {
		file := func(name string) string { return s.Lab.Node(c.Nodes[0].Name, "pki", name) }
		pems, err := readAll(file("ca.crt"), file("admin.crt"), file("admin.key"))
		if err != nil {
			return err
		}
		b64 := func(i int) string { return base64.StdEncoding.EncodeToString(pems[i]) }
		fmt.Fprintf(&clusters, "- name: %s\n  cluster:\n    server: %s\n    proxy-url: http://%s\n    certificate-authority-data: %s\n",
			c.Name, c.Server(), s.ports[c.Name], b64(0))
		fmt.Fprintf(&users, "- name: %s\n  user:\n    client-certificate-data: %s\n    client-key-data: %s\n", c.Name, b64(1), b64(2))
		fmt.Fprintf(&contexts, "- name: %s\n  context:\n    cluster: %[1]s\n    user: %[1]s\n", c.Name)
	}
	return state.WriteFile(s.Lab.Kubeconfig(), fmt.Appendf(nil,
		"apiVersion: v1\nkind: Config\ncurrent-context: %s\nclusters:\n%susers:\n%scontexts:\n%s",
		s.Topology.Clusters[0].Name, &clusters, &users, &contexts), 0o600)
}
