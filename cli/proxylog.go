package cli

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// logLevels are Envoy's, with istioctl's name for off.
var logLevels = []string{"trace", "debug", "info", "warning", "error", "critical", "off", "none"}

func (a *app) pcLog() *cobra.Command {
	var level string
	var reset bool
	cmd := a.pcCommand("log", "Shows or changes what a proxy logs", []string{"o"}, func(cmd *cobra.Command, v *proxyView) error {
		if v.file != "" {
			return usagef("a file has no log levels: give a proxy (POD.NAMESPACE)")
		}
		if reset && level != "" {
			return usagef("--reset and --level exclude each other; leave one out")
		}
		if reset {
			level = "warning"
		}
		query, err := logQuery(level)
		if err != nil {
			return err
		}
		_, b, err := v.call(cmd, http.MethodPost, "logging"+query)
		if err != nil {
			return err
		}
		levels, order := parseLevels(string(b))
		if structured(v.output) {
			return printValue(cmd.OutOrStdout(), levels, v.output)
		}
		var rows [][]string
		for _, n := range order {
			rows = append(rows, []string{n, levels[n]})
		}
		return table(cmd.OutOrStdout(), "LOGGER\tLEVEL", rows)
	})
	cmd.Flags().StringVar(&level, "level", "", "LEVEL, or LOGGER:LEVEL,…: trace, debug, info, warning, error, critical or off")
	cmd.Flags().BoolVarP(&reset, "reset", "r", false, "back to the default level, warning")
	return cmd
}

// logQuery turns istioctl's --level into the query of Envoy's /logging.
func logQuery(level string) (string, error) {
	if level == "" {
		return "", nil
	}
	var paths []string
	for _, part := range strings.Split(level, ",") {
		logger, l, named := strings.Cut(part, ":")
		if !named {
			l = logger
		}
		if !slices.Contains(logLevels, l) || named && logger == "" {
			return "", usagef("--level %s: is not LEVEL or LOGGER:LEVEL with a level of %s", part, strings.Join(logLevels[:7], ", "))
		}
		if l == "none" {
			l = "off"
		}
		if !named {
			if level != part {
				return "", usagef("--level %s: a level for all loggers stands alone", level)
			}
			return "?level=" + l, nil
		}
		paths = append(paths, logger+":"+l)
	}
	return "?paths=" + url.QueryEscape(strings.Join(paths, ",")), nil
}

// parseLevels reads the answer of /logging: "active loggers:", then lines of LOGGER: LEVEL.
func parseLevels(s string) (levels map[string]string, order []string) {
	levels = map[string]string{}
	for line := range strings.Lines(s) {
		name, level, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if ok && !strings.Contains(name, " ") {
			levels[name] = level
			order = append(order, name)
		}
	}
	return levels, order
}
