package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/carrick-mesh/carrick/install"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

func (a *app) tag() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tag",
		Short: "Gives names to revisions, so that namespaces need not be labelled again for each",
		Long: `A tag is a name that stands for a revision of the control plane. Namespaces labelled istio.io/rev=TAG are
injected by the revision for which the tag stands now; to move them all to another, set the tag again
and restart their pods. The tag "default" stands for istio-injection=enabled, too.`,
	}
	cmd.AddCommand(a.tagSet(), a.tagGenerate(), a.tagList(), a.tagRemove())
	return cmd
}

func (a *app) tagSet() *cobra.Command {
	var revision string
	var overwrite, yes bool
	cmd := &cobra.Command{
		Use:     "set TAG",
		Short:   "Makes a tag stand for a revision",
		Example: "  carrick tag set prod --revision 1-2-0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if revision == "" {
				return usagef("--revision is missing: the revision that the tag %s is to stand for", args[0])
			}
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "Target cluster: %s\n", c)
			before, err := c.SetTag(cmd.Context(), args[0], revision, a.target.istioNamespace, overwrite || yes)
			if err != nil {
				return c.wrong(err)
			}
			was := ""
			if before != "" && before != revision {
				was = " (it stood for " + before + ")"
			}
			fmt.Fprintf(out, "✔ Tag %s stands for revision %s%s\n", args[0], revision, was)
			label := "istio.io/rev=" + args[0]
			if args[0] == install.DefaultRevision {
				label = "istio-injection=enabled"
			}
			fmt.Fprintf(out, "Pods of namespaces labelled %s that start from now on are injected by it; to move those that run: kubectl --context=%s -n NAMESPACE rollout restart deployment\n", label, c.context)
			return nil
		},
	}
	cmd.Flags().StringVarP(&revision, "revision", "r", "", "revision of the control plane")
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "the tag may stand for another revision now")
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "the same as --overwrite")
	return cmd
}

func (a *app) tagGenerate() *cobra.Command {
	var revision string
	cmd := &cobra.Command{
		Use:   "generate TAG",
		Short: "Prints the webhooks of a tag, for kubectl apply -f -; the control plane fills in their caBundle",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if revision == "" {
				return usagef("--revision is missing: the revision that the tag %s is to stand for", args[0])
			}
			objs, err := install.TagObjects(args[0], revision, a.target.istioNamespace)
			if err != nil {
				return err
			}
			for i, o := range objs {
				y, err := yaml.Marshal(o.Object)
				if err != nil {
					return err
				}
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "---")
				}
				if _, err = cmd.OutOrStdout().Write(y); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&revision, "revision", "r", "", "revision of the control plane")
	cmd.Flags().BoolP("skip-confirmation", "y", false, "accepted for istioctl's sake")
	cmd.Flags().Bool("overwrite", false, "accepted for istioctl's sake")
	return cmd
}

func (a *app) tagList() *cobra.Command {
	var output string
	var everywhere bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"show"},
		Short:   "Lists the tags, their revisions, and the namespaces that follow them",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "table", "json", "yaml", ""); err != nil {
				return err
			}
			return survey(&a.target, cmd, everywhere, output,
				func(c *cluster) ([]install.Tag, error) {
					tags, err := c.Tags(cmd.Context())
					return tags, c.wrong(err)
				},
				func(tags []install.Tag) error { return printTags(cmd, tags) })
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().BoolVar(&everywhere, "all-contexts", false, "ask every cluster of the kubeconfig")
	return cmd
}

func printTags(cmd *cobra.Command, tags []install.Tag) error {
	out := cmd.OutOrStdout()
	if len(tags) == 0 {
		fmt.Fprintln(out, "There are no tags; make one: carrick tag set TAG --revision REVISION")
		return nil
	}
	var rows [][]string
	for _, t := range tags {
		rows = append(rows, []string{t.Name, t.Revision, strings.Join(t.Namespaces, ",")})
	}
	return table(out, "TAG\tREVISION\tNAMESPACES", rows)
}

func (a *app) tagRemove() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "remove TAG",
		Short: "Takes a tag away; pods that it injected run on",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.target.connect(cmd)
			if err != nil {
				return err
			}
			tags, err := c.Tags(cmd.Context())
			if err != nil {
				return c.wrong(err)
			}
			i := slices.IndexFunc(tags, func(t install.Tag) bool { return t.Name == args[0] })
			if i < 0 {
				return c.wrong(fmt.Errorf("there is no tag %s; see: carrick tag list", args[0]))
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "Target cluster: %s\n", c)
			if ns := tags[i].Namespaces; len(ns) > 0 && args[0] != install.DefaultRevision {
				fmt.Fprintf(out, "  note:     new pods of these namespaces, which are labelled istio.io/rev=%s, get no sidecar any more: %s\n", args[0], strings.Join(ns, ", "))
				if !yes {
					if err := canAsk(cmd, false); err != nil {
						return err
					}
					if err := ask(cmd); err != nil {
						return err
					}
				}
			}
			if err := c.RemoveTag(cmd.Context(), args[0]); err != nil {
				return c.wrong(err)
			}
			fmt.Fprintf(out, "✔ Tag %s removed\n", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	return cmd
}
