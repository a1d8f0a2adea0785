package carrick

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/schema"
)

var update = flag.Bool("update", false, "write the tables of README.md and README.zh-CN.md")

// tableWords are what the table of kinds says, by file.
var tableWords = map[string]struct{ header, yes, no string }{
	"README.md":       {"| kinds | of | effect |", "yes", "**none yet**"},
	"README.zh-CN.md": {"| 资源类型 | API 组 | 是否生效 |", "是", "**暂无**"},
}

const tableBegins, tableEnds = "<!-- make readme writes this table from package schema -->\n", "<!-- end of the table -->\n"

// kindsTable has a row for the kinds of a group that have an effect, and one for those that have none.
func kindsTable(header, yes, no string) string {
	type form struct{ group, effect string }
	var order []form
	names := map[form][]string{}
	for _, k := range schema.Kinds() {
		f := form{k.Group, no}
		if k.Implemented {
			f.effect = yes
		}
		if names[f] == nil {
			order = append(order, f)
		}
		names[f] = append(names[f], k.Kind)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n|---|---|---|\n", header)
	for _, f := range order {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", strings.Join(names[f], ", "), f.group, f.effect)
	}
	return b.String()
}

// The READMEs say of each kind whether it has an effect, as schema does.
func TestWhatWorks(t *testing.T) {
	for file, words := range tableWords {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		before, rest, ok := strings.Cut(string(b), tableBegins)
		is, after, ok2 := strings.Cut(rest, tableEnds)
		if !ok || !ok2 {
			t.Errorf("%s has no place for the table of kinds", file)
			continue
		}
		table := kindsTable(words.header, words.yes, words.no)
		if is == table {
			continue
		}
		if !*update {
			t.Errorf("%s: the table of kinds is not what package schema says; run make readme", file)
			continue
		}
		if err := os.WriteFile(file, []byte(before+tableBegins+table+tableEnds+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
