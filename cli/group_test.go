package cli

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// groupsOf lists every command that has commands below it.
func groupsOf(cmd *cobra.Command) (groups []*cobra.Command) {
	if !cmd.HasSubCommands() {
		return nil
	}
	groups = append(groups, cmd)
	for _, c := range cmd.Commands() {
		groups = append(groups, groupsOf(c)...)
	}
	return groups
}

// A script must see that a command does not exist: exit code 2, whatever group it was looked for in.
func TestUnknownCommand(t *testing.T) {
	for _, g := range groupsOf(New("1.0.0")) {
		args := append(strings.Fields(g.CommandPath())[1:], "nonesuch", "a", "b")
		stdout, stderr, code := carrick(t, "", args...)
		if code != 2 || stdout != "" || !strings.Contains(stderr, `unknown command "nonesuch" for "`+g.CommandPath()+`"`) {
			t.Errorf("%s: exit code %d\n%s%s", args, code, stdout, stderr)
		}
		if stdout, stderr, code = carrick(t, "", args[:len(args)-3]...); code != 0 || !strings.Contains(stdout, "Usage:") {
			t.Errorf("%s without a command: exit code %d\n%s%s", g.CommandPath(), code, stdout, stderr)
		}
	}
}

func TestNearestCommand(t *testing.T) {
	for args, want := range map[string]string{
		"tag lsit":           `did you mean "carrick tag list"`,
		"anlyze":             `did you mean "carrick analyze"?`,
		"x precheckk":        `did you mean "carrick experimental precheck"?`,
		"proxy-config rutes": `did you mean "carrick proxy-config route"?`,
	} {
		if _, stderr, code := carrick(t, "", strings.Fields(args)...); code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("carrick %s: exit code %d, want %s:\n%s", args, code, want, stderr)
		}
	}
}
