package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// refuseUnknown makes every command at or below c that only groups others fail with exit code 2 when it
// is given the name of a command that it does not have. Without arguments a group prints its help. Cobra
// prints help in both cases, and exits 0, which a script takes for success.
func refuseUnknown(c *cobra.Command) {
	for _, sub := range c.Commands() {
		refuseUnknown(sub)
	}
	if c.Runnable() || !c.HasSubCommands() {
		return
	}
	c.SuggestionsMinimumDistance = 2
	c.Args = func(group *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return usageError{unknownCommand(group, args[0])}
	}
	c.RunE = func(group *cobra.Command, _ []string) error { return group.Help() }
}

// unknownCommand names the command that a group does not have, and the nearest names that it has or
// where the list of them is.
func unknownCommand(group *cobra.Command, name string) error {
	path := group.CommandPath()
	near := group.SuggestionsFor(name)
	if len(near) == 0 {
		return fmt.Errorf("unknown command %q for %q; see: %s --help", name, path, path)
	}
	for i, n := range near {
		near[i] = strconv.Quote(path + " " + n)
	}
	return fmt.Errorf("unknown command %q for %q; did you mean %s?", name, path, strings.Join(near, " or "))
}
