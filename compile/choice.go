package compile

import (
	"strings"

	"github.com/carrick-mesh/carrick/mesh"
)

// choice is the DestinationRules of a host that may hold for the proxies of a namespace: which of them does,
// their labels say.
type choice struct {
	selected *mesh.Rule // the first of those with a workloadSelector, which have the others as Next; or nil
	rule     *mesh.Rule // the one for all that none of selected selects; or nil
}

// choiceOf returns the DestinationRules for a client namespace: those of its own with a workloadSelector and,
// without one, one of its own namespace, or of the service's, or of the root's.
func choiceOf(h *mesh.Host, client string) (c choice) {
	for _, ns := range [...]string{client, h.Service.Concrete().Namespace, h.Root} {
		for _, r := range h.Rules {
			switch {
			case r.Namespace != ns || ns == "" || !r.Visible(client):
			case !r.Selects():
				c.rule = r
				return c
			case ns == client && c.selected == nil:
				c.selected = r
			}
		}
	}
	return c
}

// of returns the choice that proxies with these labels have: none but its rule.
func (c choice) of(labels string) choice {
	if c.selected == nil {
		return c
	}
	has := labelMap(labels)
	for r := c.selected; r != nil; r = r.Next() {
		if mesh.Selects(r.Selector(), has) {
			return choice{rule: r}
		}
	}
	return choice{rule: c.rule}
}

// labels returns the keys of the labels that the choice depends on, sorted, joined by commas.
func (c choice) labels() string {
	var keys []string
	for r := c.selected; r != nil; r = r.Next() {
		keys = append(keys, sortedKeys(r.Selector())...)
	}
	return sortedSet(strings.Join(keys, ","))
}

// any reports whether f holds for one of the rules.
func (c choice) any(f func(*mesh.Rule) bool) bool {
	for r := c.selected; r != nil; r = r.Next() {
		if f(r) {
			return true
		}
	}
	return c.rule != nil && f(c.rule)
}

// where keeps the rules only if f holds for one of them: what depends on them is the same without, then.
func (c choice) where(f func(*mesh.Rule) bool) choice {
	if !c.any(f) {
		return choice{}
	}
	return c
}
