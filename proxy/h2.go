package proxy

// serveHTTP2 begins to serve HTTP/2 on d.
func (w *worker) serveHTTP2(d *downstream) {
	w.p.log.Warn("HTTP/2 is not served", "listener", d.listener.Name)
	d.c.close()
}
