package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// runRequest is the verb request, which istioctl runs in the pod to read the proxy's admin port.
func runRequest(ctx context.Context, e environment, args []string) error {
	f := newFlags("request", e)
	port := f.Int("debug-port", 15000, "the proxy's admin port")
	rest, err := f.parse(args, 3)
	if err != nil {
		return err
	}
	if len(rest) < 2 {
		fmt.Fprintln(e.stderr, "usage: carrick-proxy request METHOD PATH [BODY]")
		return errUsage
	}
	var body io.Reader
	if len(rest) == 3 {
		body = strings.NewReader(rest[2])
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	url := fmt.Sprintf("http://localhost:%d/%s", *port, strings.TrimPrefix(rest[1], "/"))
	req, err := http.NewRequestWithContext(ctx, strings.ToUpper(rest[0]), url, body)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("the proxy's admin port does not answer: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(e.stdout, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s", req.Method, url, resp.Status)
	}
	return nil
}

// runWait is the verb wait: the hook that holds other containers back until the proxy is ready.
func runWait(ctx context.Context, e environment, args []string) error {
	f := newFlags("wait", e)
	url := f.text("url", "", "http://localhost:15021/healthz/ready", "what to ask")
	timeout := f.Int("timeoutSeconds", 60, "how long to wait")
	each := f.Int("requestTimeoutMillis", 500, "how long one request may take")
	period := f.Int("periodMillis", 500, "pause between requests")
	if _, err := f.parse(args, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(*timeout)*time.Second)
	defer cancel()
	client := http.Client{Timeout: time.Duration(*each) * time.Millisecond}
	for {
		err := ready(ctx, &client, *url)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the proxy is not ready after %d s: %w", *timeout, err)
		case <-time.After(time.Duration(*period) * time.Millisecond):
		}
	}
}

func ready(ctx context.Context, c *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(b)))
	}
	return nil
}
