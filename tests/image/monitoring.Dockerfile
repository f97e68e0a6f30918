# Images that take the place of Prometheus and Grafana where their own can't be pulled. They have the same users, folders,
# ports and pages that docker-compose.yml relies on. `prometheus` is Debian's; `grafana` only reads its files and answers.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm


FROM ${PYTHON_IMAGE} AS prometheus
RUN apt-get update \
    && apt-get install --yes --no-install-recommends prometheus wget \
    && rm -rf /var/lib/apt/lists/* /etc/prometheus \
    && install --directory --owner=65534 --group=65534 /prometheus
USER 65534:65534
WORKDIR /prometheus
EXPOSE 9090
ENTRYPOINT ["prometheus"]


FROM prometheus AS grafana
USER 0:0
RUN install --directory --owner=472 --group=0 /var/lib/grafana /usr/share/grafana/public/api \
    && touch /usr/share/grafana/public/api/health
USER 472:0
WORKDIR /usr/share/grafana
EXPOSE 3000
ENTRYPOINT ["python", "-m", "http.server", "3000", "--directory", "public"]
