package install

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// granted is a role and whom it is bound to.
type granted struct {
	account   string // NAMESPACE/NAME
	namespace string // "" is the whole cluster
	rules     []rbacv1.PolicyRule
}

// accountsOf returns what manifests grant, and all their accounts.
func accountsOf(t *testing.T, objs []*unstructured.Unstructured) (all []granted, accounts []string) {
	t.Helper()
	into := func(o *unstructured.Unstructured, to any) {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, to); err != nil {
			t.Fatal(err)
		}
	}
	rules := map[string][]rbacv1.PolicyRule{}
	for _, o := range objs {
		switch o.GetKind() {
		case "ClusterRole", "Role":
			var r rbacv1.ClusterRole
			into(o, &r)
			rules[o.GetKind()+"/"+o.GetNamespace()+"/"+o.GetName()] = r.Rules
		case "ServiceAccount":
			accounts = append(accounts, o.GetNamespace()+"/"+o.GetName())
		}
	}
	for _, o := range objs {
		if o.GetKind() != "ClusterRoleBinding" && o.GetKind() != "RoleBinding" {
			continue
		}
		var b rbacv1.RoleBinding
		into(o, &b)
		r, ok := rules[b.RoleRef.Kind+"/"+o.GetNamespace()+"/"+b.RoleRef.Name]
		if !ok {
			t.Errorf("%s %s binds %s %s, which is not there", o.GetKind(), o.GetName(), b.RoleRef.Kind, b.RoleRef.Name)
		}
		for _, s := range b.Subjects {
			all = append(all, granted{s.Namespace + "/" + s.Name, o.GetNamespace(), r})
		}
	}
	slices.Sort(accounts)
	return all, accounts
}

// list writes rules as kubectl auth can-i --list does: resource, names, verbs; one line each.
func list(rules []rbacv1.PolicyRule) []string {
	verbs := map[string][]string{}
	for _, r := range rules {
		for _, g := range r.APIGroups {
			for _, res := range r.Resources {
				key := res
				if g != "" {
					name, sub, _ := strings.Cut(res, "/")
					if key = name + "." + g; sub != "" {
						key += "/" + sub
					}
				}
				key += " [" + strings.Join(slices.Sorted(slices.Values(r.ResourceNames)), " ") + "]"
				verbs[key] = append(verbs[key], r.Verbs...)
			}
		}
	}
	var out []string
	for _, key := range slices.Sorted(maps.Keys(verbs)) {
		vs := verbs[key]
		slices.Sort(vs)
		out = append(out, key+" ["+strings.Join(slices.Compact(vs), " ")+"]")
	}
	return out
}

// wholeInstall renders a control plane with gateways in both kinds of namespaces, a revision, and the load
// balancer.
func wholeInstall(t *testing.T) (objs []*unstructured.Unstructured) {
	t.Helper()
	c := resolve(t, "", "profile=default", "components.ingressGateways[1].name=edge", "components.ingressGateways[1].namespace=edge", "components.ingressGateways[1].enabled=true")
	m, err := c.Render()
	if err != nil {
		t.Fatal(err)
	}
	lb, err := LoadBalancer(LBConfig{Tag: "1.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	tag, err := TagObjects("prod", "default", "istio-system")
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(m.Objects(), lb.Objects(), tag)
}

// What each account may do, as kubectl auth can-i --list shows it. A line that comes or goes is a decision.
func TestAccounts(t *testing.T) {
	objs := wholeInstall(t)
	all, accounts := accountsOf(t, objs)
	var out strings.Builder
	for _, a := range accounts {
		fmt.Fprintf(&out, "%s\n", a)
		byNamespace := map[string][]rbacv1.PolicyRule{}
		for _, g := range all {
			if g.account == a {
				byNamespace[g.namespace] = append(byNamespace[g.namespace], g.rules...)
			}
		}
		if len(byNamespace) == 0 {
			out.WriteString("  nothing\n")
		}
		for _, ns := range slices.Sorted(maps.Keys(byNamespace)) {
			where := "the whole cluster"
			if ns != "" {
				where = "namespace " + ns
			}
			fmt.Fprintf(&out, "  in %s\n", where)
			for _, l := range list(byNamespace[ns]) {
				fmt.Fprintf(&out, "    %s\n", l)
			}
		}
	}
	golden(t, "accounts.golden", []byte(out.String()))

	for _, g := range all {
		for _, r := range g.rules {
			if slices.Contains(r.Verbs, "*") || slices.Contains(r.Resources, "*") || slices.Contains(r.APIGroups, "*") {
				t.Errorf("%s: %v is not limited", g.account, r)
			}
			if slices.Contains(r.Resources, "secrets") && (g.namespace == "" || g.account != "istio-system/istiod") {
				t.Errorf("%s may %v Secrets in %q", g.account, r.Verbs, g.namespace)
			}
			if slices.Contains(r.Verbs, "create") && len(r.ResourceNames) > 0 {
				t.Errorf("%s: create cannot be limited to names: %v", g.account, r)
			}
		}
	}
}

// A gateway faces strangers: who breaks into one finds no token of the API server, and its account may do
// nothing.
func TestGatewayHasNoToken(t *testing.T) {
	objs := wholeInstall(t)
	all, _ := accountsOf(t, objs)
	found := 0
	for _, o := range objs {
		var d appsv1.Deployment
		if o.GetKind() != "Deployment" {
			continue
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
			t.Fatal(err)
		}
		if d.Spec.Template.Annotations["inject.istio.io/templates"] != "gateway" {
			continue
		}
		found++
		if m := d.Spec.Template.Spec.AutomountServiceAccountToken; m == nil || *m {
			t.Errorf("%s/%s mounts its account's token", d.Namespace, d.Name)
		}
		for _, g := range all {
			if g.account == d.Namespace+"/"+d.Spec.Template.Spec.ServiceAccountName {
				t.Errorf("%s may do something: %v", g.account, g.rules)
			}
		}
	}
	if found != 2 {
		t.Errorf("%d gateways, want 2", found)
	}
}

// A real API server grants each account what was rendered, and nothing that it does not have.
func TestAccountsOnAServer(t *testing.T) {
	c, config := newClusterWithConfig(t)
	objs := wholeInstall(t)
	all, accounts := accountsOf(t, objs)
	resources := map[string]bool{}
	for _, ns := range []string{"istio-system", "edge", "metallb-system"} {
		if _, err := c.Kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range objs {
		if strings.HasPrefix(o.GetAPIVersion(), rbacGroup) {
			if _, err := c.apply(t.Context(), o, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, lists, err := c.Kube.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lists {
		group, _, ok := strings.Cut(l.GroupVersion, "/")
		if !ok {
			group = ""
		}
		for _, r := range l.APIResources {
			for _, v := range r.Verbs {
				resources[group+"/"+r.Name+"/"+v] = true
			}
		}
	}
	for _, g := range all {
		for _, r := range g.rules {
			for _, group := range r.APIGroups {
				if strings.Contains(group, ".") && !strings.HasSuffix(group, ".k8s.io") {
					continue // of CRDs
				}
				for _, res := range r.Resources {
					for _, v := range r.Verbs {
						if !resources[group+"/"+res+"/"+v] && !strings.HasPrefix(group, "gateway.") {
							t.Errorf("%s: the API server has no %s of %s.%s", g.account, v, res, group)
						}
					}
				}
			}
		}
	}
	may := func(account, in string) []string {
		ns, name, _ := strings.Cut(account, "/")
		as := rest.CopyConfig(config)
		as.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + ns + ":" + name,
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + ns, "system:authenticated"}}
		k, err := kubernetes.NewForConfig(as)
		if err != nil {
			t.Fatal(err)
		}
		review, err := k.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(),
			&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: in}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var rules []rbacv1.PolicyRule
		for _, r := range review.Status.ResourceRules {
			rules = append(rules, rbacv1.PolicyRule{APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames, Verbs: r.Verbs})
		}
		return list(rules)
	}
	anybody := may("default/nobody", "default") // what every account may
	for _, a := range accounts {
		for _, in := range []string{"istio-system", "edge", "metallb-system", "default"} {
			var rules []rbacv1.PolicyRule
			for _, g := range all {
				if g.account == a && (g.namespace == "" || g.namespace == in) {
					rules = append(rules, g.rules...)
				}
			}
			got := slices.DeleteFunc(may(a, in), func(l string) bool { return slices.Contains(anybody, l) })
			if want := list(rules); !slices.Equal(got, want) {
				t.Errorf("%s in %s may:\n%s\nwant:\n%s", a, in, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	}
}
