// Package diagnose explains: it turns what proxies and control planes show of themselves into
// tables and sentences. It knows the forms of config dumps and log lines; it asks nobody.
package diagnose
