package differential

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the table of docs/envoy-differences.md from the rules")

const (
	document   = "../../docs/envoy-differences.md"
	tableBegin = "<!-- from the rules of test/differential; go test ./test/differential -run TestDocument -update -->\n"
	tableEnd   = "<!-- end -->\n"
)

// table is what the rules say, for people.
func table() string {
	var b strings.Builder
	b.WriteString("| what | Envoy 1.40 | Carrick | why |\n|---|---|---|---|\n")
	cell := strings.NewReplacer("|", `\|`).Replace
	for _, r := range rules {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", cell(r.subject), cell(r.envoy), cell(r.carrick), cell(r.why))
	}
	return b.String()
}

// TestDocument holds docs/envoy-differences.md to the rules: a difference that is accepted is told.
func TestDocument(t *testing.T) {
	b, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), tableBegin)
	_, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatal("the document has no place for the table")
	}
	want := before + tableBegin + table() + tableEnd + after
	if want == string(b) {
		return
	}
	if !*update {
		t.Fatal("docs/envoy-differences.md is not what the rules say: go test ./test/differential -run TestDocument -update")
	}
	if err := os.WriteFile(document, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestRules: each rule says all that the document needs, and its expressions are right.
func TestRules(t *testing.T) {
	for _, r := range rules {
		if r.subject == "" || r.envoy == "" || r.carrick == "" || r.why == "" {
			t.Errorf("%q does not say what differs and why", r.subject)
		}
		r.compile()
	}
}
