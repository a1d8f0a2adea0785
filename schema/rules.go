package schema

import (
	"slices"

	rbac "k8s.io/api/rbac/v1"
)

// Rules is what a control plane may do with users' objects: read all kinds, those without effect as
// well, to tell of them, and write their statuses. Which kinds are served it learns from the CRDs.
func Rules() []rbac.PolicyRule {
	var groups []string
	read, status := map[string][]string{}, map[string][]string{}
	for _, k := range Kinds() {
		if !slices.Contains(groups, k.Group) {
			groups = append(groups, k.Group)
		}
		read[k.Group] = append(read[k.Group], k.Plural)
		if k.Status != NoStatus {
			status[k.Group] = append(status[k.Group], k.Plural+"/status")
		}
	}
	rules := []rbac.PolicyRule{
		{APIGroups: []string{"apiextensions.k8s.io"}, Resources: []string{"customresourcedefinitions"}, Verbs: []string{"list", "watch"}},
	}
	for _, g := range groups {
		slices.Sort(read[g])
		rules = append(rules, rbac.PolicyRule{APIGroups: []string{g}, Resources: read[g], Verbs: []string{"get", "list", "watch"}})
		if len(status[g]) > 0 {
			slices.Sort(status[g])
			rules = append(rules, rbac.PolicyRule{APIGroups: []string{g}, Resources: status[g], Verbs: []string{"update"}})
		}
	}
	return rules
}
