#!/bin/sh
# Certificates for mTLS between the services on one machine (docs/deploy.md), by openssl: an authority, and for each service
# a folder with tls.crt, tls.key and ca.crt, which are the names that cert-manager uses.
#   deploy/certificates.sh FOLDER              # for compose.tls.yaml, and FOLDER/local for fsr up --inner-tls
#   DAYS=30 deploy/certificates.sh FOLDER      # later: renews all of them; the services need no restart
set -eu
test $# = 1 || { echo "error: name a folder: deploy/certificates.sh FOLDER" >&2; exit 1; }
folder=$1 days=${DAYS:-90}
test -f "$folder/ca.key" || mkdir -m 700 "$folder" # nobody else gets past it; containers see the folders in it alone
cd "$folder"
new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"

test -f ca.key || (umask 077; openssl req -x509 $new -days 3650 -subj "/CN=fsr inner TLS" -keyout ca.key -out ca.crt \
    -addext keyUsage=critical,keyCertSign)

issue() { # NAME SUBJECT_ALT_NAMES USAGES
    mkdir -p -m 755 "$1" new
    printf 'subjectAltName=%s\nextendedKeyUsage=%s\nbasicConstraints=critical,CA:false\n' "$2" "$3" > new/extensions
    openssl req $new -subj "/CN=$1" -keyout new/tls.key -out new/request
    openssl x509 -req -in new/request -CA ca.crt -CAkey ca.key -days "$days" -extfile new/extensions -out new/tls.crt
    cp ca.crt new/ca.crt
    chmod 644 new/tls.key new/ca.crt # the user of a container is another one
    mv new/ca.crt new/tls.key new/tls.crt "$1"
    rm -r new
}

issue gateway DNS:gateway clientAuth
issue encoder DNS:encoder,DNS:localhost,IP:127.0.0.1 serverAuth,clientAuth
issue decoder DNS:decoder serverAuth
issue local DNS:localhost,IP:127.0.0.1 serverAuth,clientAuth
