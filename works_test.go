package carrick

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/carrick-mesh/carrick/schema"
)

var update = flag.Bool("update", false, "write the tables of README.md, README.zh-CN.md and docs/fields.md")

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

// fieldsTable has a row for each field that never has an effect.
func fieldsTable() string {
	var b strings.Builder
	b.WriteString("| message | field | instead |\n|---|---|---|\n")
	for _, f := range schema.Inerts() {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", f.Message[strings.LastIndexByte(f.Message, '.')+1:], camel(f.Field), f.Why)
	}
	return b.String()
}

// camel is a field's name in YAML.
func camel(name string) string {
	first, rest, ok := strings.Cut(name, "_")
	for ok && rest != "" {
		var part string
		part, rest, ok = strings.Cut(rest, "_")
		first += strings.ToUpper(part[:1]) + part[1:]
	}
	return first
}

// docs/fields.md lists the fields without effect, as schema does.
func TestFieldsDocument(t *testing.T) {
	const file = "docs/fields.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), tableBegins)
	is, after, ok2 := strings.Cut(rest, tableEnds)
	if table := fieldsTable(); ok && ok2 && is == table {
		return
	} else if !*update || !ok || !ok2 {
		t.Fatalf("%s: the table of fields is not what package schema says; run make readme", file)
	} else if err := os.WriteFile(file, []byte(before+tableBegins+table+tableEnds+after), 0o644); err != nil {
		t.Fatal(err)
	}
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
