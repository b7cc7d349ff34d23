.mode list
create table rows (id integer primary key, key integer, name text);
with recursive n(i) as (select 0 union all select i + 1 from n where i < 60000)
insert into rows select i, i * 7919 % 60013, 'row ' || i from n;
create index by_key on rows (key);
select count(*), sum(key), max(name) from rows where key between 1000 and 40000;
select key % 97 as part, count(*), sum(length(name)) from rows group by part order by part limit 5;
select sum(a.key * b.key % 101) from rows a join rows b on a.key = b.id where a.id % 2 = 0;
update rows set name = upper(name) || key where id % 3 = 0;
select sum(length(name)) from rows;
