package kube

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SecretData returns what a Secret holds, nil if there is no such Secret.
func (c *Client) SecretData(ctx context.Context, namespace, name string) (map[string][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := c.kube.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading Secret %s/%s: %w", namespace, name, err)
	case s.Data == nil:
		return map[string][]byte{}, nil
	}
	return s.Data, nil
}

// CreateSecret makes a Secret. It reports false if there is one of that name already.
func (c *Client) CreateSecret(ctx context.Context, namespace, name, typ string, data map[string][]byte) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.kube.CoreV1().Secrets(namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Type: corev1.SecretType(typ), Data: data}, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("making Secret %s/%s: %w", namespace, name, err)
	}
	return true, nil
}

// ConfigMapData returns what a ConfigMap holds, nil if there is no such ConfigMap.
func (c *Client) ConfigMapData(ctx context.Context, namespace, name string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	m, err := c.kube.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading ConfigMap %s/%s: %w", namespace, name, err)
	case m.Data == nil:
		return map[string]string{}, nil
	}
	return m.Data, nil
}

// Version returns major and minor of the API server's version: "1", "37".
func (c *Client) Version(ctx context.Context) (major, minor string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var v struct{ Major, Minor string }
	raw, err := c.kube.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Raw()
	if err != nil {
		return "", "", fmt.Errorf("asking %s for its version: %w", c.host, err)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return "", "", fmt.Errorf("asking %s for its version: %w", c.host, err)
	}
	return v.Major, v.Minor, nil
}
