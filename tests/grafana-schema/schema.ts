// What a dashboard's JSON must be: Grafana's own types, and those of the panels and queries that ours are made of. The test
// (tests/python/test_grafana.py) writes the JSON beside a copy of this file as a literal, so that a field that no type has is
// an error too.

import type {
  AnnotationQuery,
  Dashboard,
  DataSourceRef,
  Panel,
  RowPanel,
  VariableModel,
} from '@grafana/schema';
import type {
  FieldConfig as HeatmapFieldConfig,
  Options as HeatmapOptions,
} from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type {
  FieldConfig as TimeSeriesFieldConfig,
  Options as TimeSeriesOptions,
} from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

/** A type as its JSON is: the members of an enum by their values. */
type Json<T> = T extends string
  ? `${T}`
  : T extends number
    ? `${T}` extends `${infer N extends number}`
      ? N
      : never
    : T extends boolean | null | undefined
      ? T
      : T extends (infer E)[]
        ? Json<E>[]
        : unknown extends T
          ? T
          : { [K in keyof T]: Json<T[K]> };

/** A query of the Prometheus data source; its type is not in @grafana/schema. */
interface Target {
  refId: string;
  datasource: DataSourceRef;
  editorMode: 'code';
  expr: string;
  format: 'time_series' | 'heatmap' | 'table';
  instant: boolean;
  range: boolean;
  legendFormat: string;
}

/** The query of a variable; `qryType` is that of label_names(), label_values() or query_result(). */
interface VariableQuery {
  query: string;
  refId: string;
  qryType: 0 | 1 | 3;
}

type Plain<T> = Omit<T, 'fieldConfig' | 'options' | 'targets' | 'type' | 'id' | 'gridPos' | 'title' | 'description'> &
  Required<Pick<Panel, 'id' | 'gridPos' | 'title' | 'description'>>;

interface PanelOf<TType, TOptions, TField> {
  type: TType;
  options: TOptions;
  targets: Target[];
  fieldConfig: {
    defaults: Omit<NonNullable<Panel['fieldConfig']>['defaults'], 'custom'> & { custom: TField };
    overrides: NonNullable<Panel['fieldConfig']>['overrides'];
  };
}

type Panels =
  | Json<Plain<Panel> & PanelOf<'timeseries', TimeSeriesOptions, TimeSeriesFieldConfig>>
  | Json<Plain<Panel> & PanelOf<'heatmap', HeatmapOptions, HeatmapFieldConfig>>
  | Json<RowPanel>;

type Variables =
  | Json<Omit<VariableModel, 'query' | 'type'> & { type: 'query'; query: VariableQuery }>
  | Json<Omit<VariableModel, 'query' | 'type'> & { type: 'datasource' | 'custom'; query: string }>;

export type DashboardJson = Json<Required<Pick<Dashboard, 'uid' | 'title' | 'refresh' | 'time'>>> &
  Json<Omit<Dashboard, 'panels' | 'templating' | 'annotations'>> & {
    panels: Panels[];
    templating: { list: Variables[] };
    annotations: { list: Json<AnnotationQuery>[] };
  };
