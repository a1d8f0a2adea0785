# A root CA and an intermediate CA for each cluster, made with openssl.
#
#   make -f Makefile.selfsigned.mk root-ca              root-key.pem root-cert.pem (and .csr, .conf)
#   make -f Makefile.selfsigned.mk cluster1-cacerts     cluster1/{ca-key,ca-cert,cert-chain,root-cert}.pem
#   make -f Makefile.selfsigned.mk sample-certs         sample/{key,workload-cert,workload-cert-chain,root-cert}.pem
#
# The targets, variables and files are those of Istio's Makefile of this name. `carrick ca root`
# and `carrick ca intermediate NAME` write the same without openssl or make.
# Keep root-key.pem offline: who has it can be anybody in the mesh.

ROOTCA_DAYS       ?= 3650
ROOTCA_KEYSZ      ?= 4096
ROOTCA_ORG        ?= Istio
ROOTCA_CN         ?= Root CA
INTERMEDIATE_DAYS   ?= 730
INTERMEDIATE_KEYSZ  ?= 4096
INTERMEDIATE_ORG    ?= Istio
INTERMEDIATE_CN     ?= Intermediate CA
INTERMEDIATE_SAN_DNS ?= istiod.istio-system.svc
WORKLOAD_DAYS     ?= 1
SERVICE_ACCOUNT   ?= default
TRUST_DOMAIN      ?= cluster.local

.DEFAULT_GOAL := help
.PRECIOUS: %/ca-key.pem %/ca-cert.pem %/cert-chain.pem %/key.pem
.SECONDARY:

.PHONY: help
help: ## print the targets
	@sed -n 's/^#   make/  make/p' $(firstword $(MAKEFILE_LIST))

.PHONY: root-ca
root-ca: root-key.pem root-cert.pem ## a root key and certificate

.PHONY: clean
clean: ## remove the files of the root; the folders of the clusters stay
	rm -f root-key.pem root-cert.pem root-cert.csr root-ca.conf root-cert.srl

root-key.pem:
	@umask 077; openssl genrsa -out $@ $(ROOTCA_KEYSZ) 2>/dev/null
	@echo "generated $@"

root-ca.conf:
	@{ echo "[ req ]"; \
	   echo "encrypt_key = no"; \
	   echo "prompt = no"; \
	   echo "utf8 = yes"; \
	   echo "default_md = sha256"; \
	   echo "req_extensions = ext"; \
	   echo "x509_extensions = ext"; \
	   echo "distinguished_name = dn"; \
	   echo "[ ext ]"; \
	   echo "subjectKeyIdentifier = hash"; \
	   echo "basicConstraints = critical, CA:true"; \
	   echo "keyUsage = critical, digitalSignature, nonRepudiation, keyEncipherment, keyCertSign"; \
	   echo "[ dn ]"; \
	   echo "O = $(ROOTCA_ORG)"; \
	   echo "CN = $(ROOTCA_CN)"; } > $@

root-cert.csr: root-key.pem root-ca.conf
	@openssl req -sha256 -new -key root-key.pem -config root-ca.conf -out $@

root-cert.pem: root-cert.csr root-key.pem root-ca.conf
	@openssl x509 -req -sha256 -days $(ROOTCA_DAYS) -signkey root-key.pem -extensions ext -extfile root-ca.conf -in root-cert.csr -out $@ 2>/dev/null
	@echo "generated $@, valid for $(ROOTCA_DAYS) days"

.PHONY: %-cacerts
%-cacerts: %/cert-chain.pem %/root-cert.pem
	@echo "the intermediate of $* is in $*/, valid for $(INTERMEDIATE_DAYS) days"

%/root-cert.pem: root-cert.pem
	@mkdir -p $(dir $@)
	@cp $< $@

%/ca-key.pem:
	@mkdir -p $(dir $@)
	@umask 077; openssl genrsa -out $@ $(INTERMEDIATE_KEYSZ) 2>/dev/null

%/intermediate.conf:
	@mkdir -p $(dir $@)
	@{ echo "[ req ]"; \
	   echo "encrypt_key = no"; \
	   echo "prompt = no"; \
	   echo "utf8 = yes"; \
	   echo "default_md = sha256"; \
	   echo "req_extensions = ext"; \
	   echo "x509_extensions = ext"; \
	   echo "distinguished_name = dn"; \
	   echo "[ ext ]"; \
	   echo "subjectKeyIdentifier = hash"; \
	   echo "basicConstraints = critical, CA:true, pathlen:0"; \
	   echo "keyUsage = critical, digitalSignature, nonRepudiation, keyEncipherment, keyCertSign"; \
	   echo "subjectAltName = @san"; \
	   echo "[ san ]"; \
	   echo "DNS.1 = $(INTERMEDIATE_SAN_DNS)"; \
	   echo "[ dn ]"; \
	   echo "O = $(INTERMEDIATE_ORG)"; \
	   echo "CN = $(INTERMEDIATE_CN)"; \
	   echo "L = $*"; } > $@

%/cluster-ca.csr: %/ca-key.pem %/intermediate.conf
	@openssl req -sha256 -new -config $*/intermediate.conf -key $*/ca-key.pem -out $@

%/ca-cert.pem: %/cluster-ca.csr root-key.pem root-cert.pem
	@openssl x509 -req -sha256 -days $(INTERMEDIATE_DAYS) -CA root-cert.pem -CAkey root-key.pem -CAcreateserial \
	  -extensions ext -extfile $*/intermediate.conf -in $*/cluster-ca.csr -out $@ 2>/dev/null

%/cert-chain.pem: %/ca-cert.pem root-cert.pem
	@cat $*/ca-cert.pem root-cert.pem > $@

# A certificate for a workload of a namespace, signed by the root: for tests by hand.
.PHONY: %-certs
%-certs: root-cert.pem root-key.pem
	@mkdir -p $*
	@umask 077; openssl genrsa -out $*/key.pem 2048 2>/dev/null
	@{ echo "[ req ]"; echo "prompt = no"; echo "distinguished_name = dn"; echo "[ dn ]"; echo "O = $(INTERMEDIATE_ORG)"; \
	   echo "[ ext ]"; echo "basicConstraints = critical, CA:false"; echo "keyUsage = critical, digitalSignature, keyEncipherment"; \
	   echo "extendedKeyUsage = serverAuth, clientAuth"; \
	   echo "subjectAltName = URI:spiffe://$(TRUST_DOMAIN)/ns/$*/sa/$(SERVICE_ACCOUNT)"; } > $*/workload.conf
	@openssl req -sha256 -new -config $*/workload.conf -key $*/key.pem -out $*/workload.csr
	@openssl x509 -req -sha256 -days $(WORKLOAD_DAYS) -CA root-cert.pem -CAkey root-key.pem -CAcreateserial \
	  -extensions ext -extfile $*/workload.conf -in $*/workload.csr -out $*/workload-cert.pem 2>/dev/null
	@cp root-cert.pem $*/root-cert.pem
	@cat $*/workload-cert.pem root-cert.pem > $*/workload-cert-chain.pem
	@echo "generated $*/workload-cert.pem, valid for $(WORKLOAD_DAYS) days"
