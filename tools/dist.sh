#!/bin/bash
# Writes the release archives to dist: dist.sh VERSION [ARCH…] (amd64 and arm64).
#
# Two runs of one source give the same bytes on one machine. Of the machine only images/samples.tar
# depends: the image of sleep takes curl, busybox and their libraries from it; and both image tars
# hold its roots of the web (ca-certificates).
set -euo pipefail
version=$1
shift
archs=("$@")
[ $# -gt 0 ] || archs=(amd64 arm64)
cd "$(dirname "$0")/.."
umask 022
go=${GO:-go}
export CGO_ENABLED=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p dist
for arch in "${archs[@]}"; do
  name=carrick-$version-linux-$arch
  root=$work/$name
  mkdir -p "$root/bin" "$root/images" "$root/tools/certs" "$root/test" "$root/docs" "$work/bin-$arch"
  GOARCH=$arch $go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o "$work/bin-$arch/" ./cmd/carrick ./samples/app ./samples/grpc/grpcecho
  GOARCH=$arch $go build -trimpath -buildvcs=false -tags grpcnotrace -ldflags "-s -w -X main.version=$version" -o "$work/bin-$arch/" ./cmd/carrick-proxy
  samples=true; [ $arch = "$($go env GOHOSTARCH)" ] || samples=false # the image of sleep takes curl from this machine
  $go run ./tools/image --version "$version" --bin "$work/bin-$arch" --arch $arch --out "$root/images" --samples=$samples >/dev/null
  cp "$work/bin-$arch/carrick" "$root/bin/"
  cp -R samples "$root/"
  rm -rf "$root/samples/app" "$root/samples/grpc/grpcecho"
  $go run -ldflags "-X main.version=$version" ./cmd/carrick manifest chart -o "$root/charts" >/dev/null
  cp tools/certs/Makefile.selfsigned.mk "$root/tools/certs/"
  cp test/walkthrough.sh test/lib.sh "$root/test/"
  cp LICENSE README.md README.zh-CN.md CHANGELOG.md "$root/"
  cp docs/upgrade.md "$root/docs/"
  $go run ./tools/sbom "$work/bin-$arch/carrick" carrick "$version" >"dist/$name.spdx.json"
  $go run ./tools/sbom "$work/bin-$arch/carrick-proxy" carrick-proxy "$version" >"dist/carrick-proxy-$version-linux-$arch.spdx.json"
  LC_ALL=C tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u+rwX,go+rX,go-w -C "$work" -cf - "$name" | gzip -n -6 >"dist/$name.tar.gz"
  echo "dist/$name.tar.gz"
done
(cd dist && sha256sum carrick*-"$version"-linux-*.tar.gz carrick*-"$version"-linux-*.spdx.json >"carrick-$version-SHA256SUMS")
echo "dist/carrick-$version-SHA256SUMS"
