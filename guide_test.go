package carrick

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestGuideCommands: each command that the READMEs show is one that test/walkthrough.sh types, so
// that they cannot drift apart. Lines that begin with a $ are commands; what follows is output.
// Which cluster a command names is left aside: before step 5 the script has a kubeconfig for each.
func TestGuideCommands(t *testing.T) {
	out, err := exec.Command("bash", "test/walkthrough.sh", "--list").Output()
	if err != nil {
		t.Fatalf("test/walkthrough.sh --list: %v", err)
	}
	typed := oneSpace(string(out))
	for _, file := range []string{"README.md", "README.zh-CN.md"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		cs := commands(string(b))
		if len(cs) < 20 {
			t.Errorf("%s: only %d commands found", file, len(cs))
		}
		for _, c := range cs {
			if !strings.Contains(typed, c) {
				t.Errorf("%s: test/walkthrough.sh does not type: %s", file, c)
			}
		}
	}
}

// commands returns the commands of a document's indented blocks, each on one line. A command goes
// on after a backslash, after a pipe, and to the end of a here-document.
func commands(doc string) (out []string) {
	here := false
	var c []string
	for line := range strings.Lines(doc) {
		text, block := strings.CutPrefix(line, "    ")
		text = strings.TrimSpace(text)
		typed, begins := strings.CutPrefix(text, "$ ")
		switch {
		case !block:
			c, here = nil, false
			continue
		case begins:
			c, here = []string{typed}, strings.Contains(typed, "<<EOF")
		case c == nil:
			continue // output
		default:
			c = append(c, text)
		}
		switch {
		case here && text != "EOF":
		case strings.HasSuffix(text, `\`), strings.HasSuffix(text, "|"):
			c[len(c)-1] = strings.TrimSuffix(c[len(c)-1], `\`)
		default:
			out = append(out, oneSpace(strings.Join(c, " ")))
			c, here = nil, false
		}
	}
	return out
}

// aside is what is not compared: a remark after a command, and the cluster that it names.
var aside = regexp.MustCompile(`(?m)( +# .*$| --context=cluster[12]\b)`)

func oneSpace(s string) string {
	return strings.Join(strings.Fields(aside.ReplaceAllString(s, "")), " ")
}

func TestCommands(t *testing.T) {
	got := commands("text\n    $ one \\\n        --flag    # why\n    output\n    $ two |\n        three -\n\n    $ four <<EOF\n    a: b\n    EOF\n    output\n    no command\n")
	want := []string{"one --flag", "two | three -", "four <<EOF a: b EOF"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}
}
