//! `loss.svg`: the loss of every step, and its running mean.

use plotters::prelude::*;

use super::metrics::StepMetrics;

/// Steps of the running mean, as a part of all.
const SMOOTH: usize = 40;

/// Draws the curve as SVG text. Plotting errors cannot stop a training run; they give None.
pub fn loss_curve(metrics: &[StepMetrics]) -> Option<String> {
    let mut svg = String::new();
    draw(metrics, &mut svg)?;
    Some(svg)
}

fn draw(metrics: &[StepMetrics], svg: &mut String) -> Option<()> {
    let (first, last) = (metrics.first()?.step as f64, metrics.last()?.step as f64);
    let losses = || metrics.iter().map(|m| m.loss).filter(|l| l.is_finite());
    let (low, high) = losses().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), l| (a.min(l), b.max(l)));
    let margin = ((high - low) * 0.05).max(1e-3);
    let root = SVGBackend::with_string(svg, (900, 500)).into_drawing_area();
    root.fill(&WHITE).ok()?;
    let mut chart = ChartBuilder::on(&root)
        .caption("training loss (nats per token)", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d(first..last.max(first + 1.0), low - margin..high + margin)
        .ok()?;
    let mesh = |v: &f64| format!("{v:.0}");
    chart.configure_mesh().x_desc("step").x_label_formatter(&mesh).light_line_style(WHITE).draw().ok()?;
    let points = metrics.iter().map(|m| (m.step as f64, m.loss));
    let (pale, strong) = (RGBColor(170, 190, 220), RGBColor(30, 70, 160));
    let legend = |color: RGBColor| move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color);
    chart.draw_series(LineSeries::new(points, pale)).ok()?.label("every step").legend(legend(pale));
    let width = (metrics.len() / SMOOTH).max(1);
    let mean = |i: usize| {
        let near = &metrics[i.saturating_sub(width)..(i + width + 1).min(metrics.len())];
        near.iter().map(|m| m.loss).sum::<f64>() / near.len() as f64
    };
    let smooth = (0..metrics.len()).map(|i| (metrics[i].step as f64, mean(i)));
    let drawn = chart.draw_series(LineSeries::new(smooth, strong.stroke_width(2))).ok()?;
    drawn.label("running mean").legend(legend(strong));
    let mut legends = chart.configure_series_labels();
    legends.position(SeriesLabelPosition::UpperRight).background_style(WHITE.mix(0.85)).draw().ok()?;
    root.present().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_an_svg_with_both_lines() {
        let m = |step| StepMetrics {
            step,
            loss: 3.0 - step as f64 / 50.0,
            kl: None,
            ce: None,
            grad_norm: 1.0,
            lr_ab: 1e-3,
            lr_scale: 1e-5,
            tokens_per_s: 1.0,
            peak_rss: 1,
        };
        let svg = loss_curve(&(1..=60).map(m).collect::<Vec<_>>()).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("every step") && svg.contains("running mean"));
        assert!(svg.contains("training loss"));
        assert!(loss_curve(&[]).is_none());
    }
}
