package compile

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/carrick-mesh/carrick/mesh"
)

// Codes of Istio's messages about rules that no request reaches.
const (
	unreachableRule  = "IST0130" // VirtualServiceUnreachableRule
	ineffectiveMatch = "IST0131" // VirtualServiceIneffectiveMatch
)

// unreachable finds rules and matches of a VirtualService that earlier ones leave nothing to.
func (c *checker) unreachable(v *mesh.VirtualService) {
	http, tcp, tls := ruleSet{}, ruleSet{}, ruleSet{}
	for i, r := range v.Spec.GetHttp() {
		var matches []proto.Message
		for _, m := range r.GetMatch() {
			m = proto.CloneOf(m)
			m.Name = "" // which changes nothing
			matches = append(matches, m)
		}
		c.rule(v, fmt.Sprintf("spec.http[%d]", i), &http, matches)
	}
	for i, r := range v.Spec.GetTcp() {
		c.rule(v, fmt.Sprintf("spec.tcp[%d]", i), &tcp, messagesOf(r.GetMatch()))
	}
	for i, r := range v.Spec.GetTls() {
		c.rule(v, fmt.Sprintf("spec.tls[%d]", i), &tls, messagesOf(r.GetMatch()))
	}
}

func messagesOf[M networking.L4MatchAttributes | networking.TLSMatchAttributes, P interface {
	*M
	proto.Message
}](all []P) (out []proto.Message) {
	for _, m := range all {
		out = append(out, m)
	}
	return out
}

// ruleSet is the rules before one: where each match was first, and the rule that takes all.
type ruleSet struct {
	matches map[string]string
	all     string
}

func (c *checker) rule(v *mesh.VirtualService, field string, before *ruleSet, matches []proto.Message) {
	switch {
	case before.all != "":
		c.add(unreachableRule, v.Key(), field, "move it before that rule", "no request reaches it: %s takes all", before.all)
		return
	case len(matches) == 0:
		before.all = field
		return
	}
	if before.matches == nil {
		before.matches = map[string]string{}
	}
	used := map[string]string{} // matches of it that an earlier rule has
	for i, m := range matches {
		key := string(encode(m))
		at := fmt.Sprintf("%s.match[%d]", field, i)
		if first, ok := before.matches[key]; ok {
			used[at] = first
		} else {
			before.matches[key] = at
		}
	}
	if len(used) == len(matches) {
		c.add(unreachableRule, v.Key(), field, "remove it, or change its matches", "no request reaches it: earlier rules have all of its matches")
		return
	}
	for _, at := range sortedKeys(used) {
		c.add(ineffectiveMatch, v.Key(), at, "remove one of them", "it has no effect: %s is the same", used[at])
	}
}
